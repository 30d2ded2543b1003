"""Sensor channel: faults are named, valid input passes."""

import numpy as np
import pytest

from worldmodel.monitors.channels.sensor import SensorChannel, SensorError

SHAPE = (16, 16, 3)
MOVE = np.array([0.01, 0, 0, 0, 0, 0, 1], np.float32)
HOLD = np.array([0, 0, 0, 0, 0, 0, 0], np.float32)


def picture(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def fault(observation: object, action: object = None) -> str:
    with pytest.raises(SensorError) as caught:
        SensorChannel(SHAPE).check(observation, action)
    return caught.value.code


@pytest.mark.parametrize(
    ("observation", "code"),
    [
        (None, "dropped"),
        ({}, "dropped"),
        ({"image": "file.jpg"}, "dropped"),
        ([[1, 2], [3, 4]], "dropped"),
        (np.full(SHAPE, np.nan), "nan"),
        (np.full(SHAPE, np.inf, np.float32), "nan"),
        (picture(0).astype(np.float32), "dtype"),
        (picture(0).astype(np.int64), "dtype"),
        (np.zeros(SHAPE, dtype=object), "dtype"),
        (picture(0)[..., :1], "shape"),
        (picture(0)[None], "shape"),
        (np.zeros((0,), np.uint8), "dropped"),
        (np.zeros(SHAPE, np.uint8), "black"),
        (np.full(SHAPE, 255, np.uint8), "blank"),
        (np.full(SHAPE, 90, np.uint8), "blank"),
    ],
)
def test_broken_frame_is_named(observation: object, code: str) -> None:
    assert fault(observation) == code


@pytest.mark.parametrize(
    "action",
    [
        np.full(7, np.nan),
        np.array([0, 0, np.inf, 0, 0, 0, 1]),
        np.zeros(6),
        np.zeros((1, 7)),
        np.zeros(7, dtype=int),
        "up",
    ],
)
def test_broken_action_is_named(action: object) -> None:
    assert fault(picture(0), action) == "action"


def test_concatenated_commands_add_up() -> None:
    """Two commands a frame that together go nowhere freeze no picture; one alone is too few."""
    there_and_back = np.concatenate([MOVE, -MOVE])
    channel = SensorChannel(SHAPE, action_rows=2)
    for _ in range(10):
        channel.check(picture(0), there_and_back)
    with pytest.raises(SensorError, match="must be an array of 14 numbers, got shape"):
        channel.check(picture(0), MOVE)
    channel.reset()
    for _ in range(3):
        channel.check(picture(0), np.concatenate([MOVE, MOVE]))
    with pytest.raises(SensorError, match="while the robot moves"):
        channel.check(picture(0), np.concatenate([MOVE, MOVE]))


def test_healthy_frames_pass_plain_or_in_a_mapping() -> None:
    channel = SensorChannel(SHAPE)
    for seed in range(10):
        np.testing.assert_array_equal(channel.check({"image": picture(seed)}, MOVE), picture(seed))
        channel.check(picture(seed + 100)[::-1, ::-1], MOVE)  # strides do not matter
        channel.check(picture(seed + 200), None)


def test_single_view_needs_no_axis() -> None:
    channel = SensorChannel((1, *SHAPE))
    np.testing.assert_array_equal(channel.check(picture(0), MOVE), picture(0)[None])
    np.testing.assert_array_equal(channel.check(picture(1)[None], MOVE), picture(1)[None])


def first_frozen(frames: list[np.ndarray], action: np.ndarray) -> int | None:
    """Index of the first frame that is refused."""
    channel = SensorChannel(frames[0].shape)
    for i, frame in enumerate(frames):
        try:
            channel.check(frame, action)
        except SensorError:
            return i
    return None


def test_frozen_camera_is_found_within_five_frames_of_motion() -> None:
    channel = SensorChannel(SHAPE)
    for _ in range(3):
        channel.check(picture(0), MOVE)
    with pytest.raises(SensorError, match="view 0 shows the same frame 4 times while"):
        channel.check(picture(0), MOVE)
    healthy = [picture(i) for i in range(4)]
    assert first_frozen(healthy + [healthy[-1]] * 20, MOVE) == 6  # 3 repeats, 3 cm


def test_slow_motion_freezes_only_after_two_centimetres() -> None:
    assert first_frozen([picture(0)] * 40, 0.09 * MOVE) == 23  # 0.9 mm a step


def test_standing_still_is_not_frozen() -> None:
    assert first_frozen([picture(0)] * 50, HOLD) is None
    trembling = np.array([1e-4, 0, 0, 0, 0, 0, 1], np.float32)
    assert first_frozen([picture(0)] * 50, trembling) is None


def test_one_frozen_view_of_two_is_found() -> None:
    still = picture(0)
    frames = [np.stack([picture(i), still]) for i in range(1, 9)]
    assert first_frozen(frames, MOVE) == 3


def test_reset_forgets_the_last_frame() -> None:
    channel = SensorChannel(SHAPE)
    for _ in range(2):
        for _ in range(3):
            channel.check(picture(0), MOVE)
        with pytest.raises(SensorError) as frozen:
            channel.check(picture(0), MOVE)
        assert frozen.value.code == "frozen"
        with pytest.raises(SensorError):
            channel.check(picture(0), MOVE)
        channel.reset()


PAIR = (2, *SHAPE)


@pytest.mark.parametrize(
    ("observation", "said"),
    [
        ({"image": None}, "got NoneType"),
        ({"image": [picture(0), None]}, "got list"),
        (np.zeros((0, *SHAPE), np.uint8), "is empty"),
        (np.zeros((2, 0, 16, 3), np.uint8), "is empty"),
        (picture(0), "only 1 of 2 views"),
        (picture(0, (1, *SHAPE)), "only 1 of 2 views"),
    ],
)
def test_a_camera_without_a_picture_is_dropped(observation: object, said: str) -> None:
    with pytest.raises(SensorError, match=said) as caught:
        SensorChannel(PAIR).check(observation, None)
    assert caught.value.code == "dropped"


@pytest.mark.parametrize("shape", [(3, *SHAPE), (1, 8, 8, 3), (8, 8, 3), (1, 2, *SHAPE)])
def test_views_of_another_shape_are_not_dropped(shape: tuple[int, ...]) -> None:
    with pytest.raises(SensorError) as caught:
        SensorChannel(PAIR).check(picture(0, shape), None)
    assert caught.value.code == "shape"


def course(
    times: list[object], *, rate_hz: float | None, shape: tuple[int, ...] = SHAPE
) -> list[str]:
    """What is said of frames taken at these times: "" if nothing; ... is a frame without one."""
    channel, said = SensorChannel(shape, rate_hz=rate_hz), []
    for i, time_s in enumerate(times):
        observation = {"image": picture(i, shape)} | ({} if time_s is ... else {"time_s": time_s})
        try:
            channel.check(observation, MOVE)
            said.append("")
        except SensorError as fault:
            said.append(str(fault) if fault.code == "late" else fault.code)
    return said


def test_a_skipped_and_a_repeated_frame_are_late() -> None:
    skipped = course([1.0, 1.2, 1.6, 1.8], rate_hz=5.0)
    gap = "view 0 was taken 0.4 s after the frame before it, at 5 frames per second."
    assert skipped == ["", "", gap, ""]
    repeated = course([1.0, 1.2, 1.2, 1.4], rate_hz=5.0)
    assert [bool(said) for said in repeated] == [False, False, True, False]
    assert repeated[2] == "view 0 was taken at the same time as the frame before it."


def test_jitter_of_less_than_half_a_period_is_not_late() -> None:
    rng = np.random.default_rng(0)
    times = 1.7e9 + np.arange(200) / 5 + rng.uniform(-0.04, 0.04, 200)  # gaps up to 0.28 s
    assert not any(course(list(times), rate_hz=5.0))
    assert any(course(list(times), rate_hz=10.0))


def test_without_a_rate_only_the_order_is_checked() -> None:
    assert course([0.0, 9.0, 9.0, 8.0, 100.0], rate_hz=None) == [
        "",
        "",
        "view 0 was taken at the same time as the frame before it.",
        "view 0 was taken 1 s before the frame before it.",
        "",
    ]


def test_times_of_two_cameras_are_compared() -> None:
    said = course(
        [[0.0, 0.05], (0.2, 0.25), np.array([0.4, 0.55]), [0.6, 0.6], [0.8, 0.6], 1.0, [1.2, 1.2]],
        rate_hz=5.0,
        shape=PAIR,
    )
    apart = "the views were taken {} s apart, at 5 frames per second."
    assert said == [
        "",
        "",
        apart.format("0.15"),
        "",
        apart.format("0.2"),
        "view 1 was taken 0.4 s after the frame before it, at 5 frames per second.",
        "",
    ]
    assert course([[0.0, 0.0], [0.2, 0.0]], rate_hz=None, shape=PAIR)[1].startswith("view 1")


def test_a_frame_without_a_time_is_not_compared() -> None:
    assert course([0.0, ..., 5.0, 5.2], rate_hz=5.0) == [""] * 4
    assert course([..., ...], rate_hz=5.0) == ["", ""]


def test_invalid_time_is_late_and_then_ignored() -> None:
    said = course([0.0, np.nan, 0.4, 0.6], rate_hz=5.0)
    assert said[1] == "`time_s` must be one number of at most 1e+11 seconds, got nan."
    assert said[2:] == ["", ""]


@pytest.mark.parametrize(
    "time_s",
    [
        None, True, "1.0", b"1", 1j, [1.0, 2.0], [], {}, {"front": 1.0}, [[1.0]], [1.0, [2.0]],
        np.inf, -np.inf, [np.nan], 10**400, 1.7e18, np.longdouble("1e4000"), np.array(["1"]),
        np.datetime64("2026-01-01"), np.ma.masked_array([1.0], mask=True), np.zeros((1, 1)),
        np.array(1.0, dtype=object), object(),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_invalid_times_are_late(time_s: object) -> None:
    assert fault({"image": picture(0), "time_s": time_s}) == "late"


def test_other_faults_come_before_lateness() -> None:
    for frame, code in ((np.zeros(SHAPE, np.uint8), "black"), (None, "dropped")):
        assert fault({"image": frame, "time_s": np.nan}) == code
    channel = SensorChannel(SHAPE, rate_hz=5.0)
    for i in range(3):
        channel.check({"image": picture(0), "time_s": i / 5}, MOVE)
    with pytest.raises(SensorError) as frozen:
        channel.check({"image": picture(0), "time_s": 0.4}, MOVE)
    assert frozen.value.code == "frozen"


def test_a_late_frame_counts_as_seen() -> None:
    channel = SensorChannel(SHAPE)
    codes = []
    for _ in range(5):
        try:
            channel.check({"image": picture(0), "time_s": 1.0}, MOVE)
            codes.append("")
        except SensorError as found:
            codes.append(found.code)
    assert codes == ["", "late", "late", "frozen", "frozen"]


def test_reset_forgets_the_last_time() -> None:
    channel = SensorChannel(SHAPE, rate_hz=5.0)
    earlier = {"image": picture(1), "time_s": 3.0}
    channel.check({"image": picture(0), "time_s": 100.0}, None)
    with pytest.raises(SensorError) as late:
        channel.check(earlier, None)
    assert late.value.code == "late"
    channel.reset()
    np.testing.assert_array_equal(channel.check(earlier, None), earlier["image"])


@pytest.mark.parametrize("rate_hz", [0.0, -5.0, np.nan, np.inf])
def test_invalid_rate_is_refused(rate_hz: float) -> None:
    with pytest.raises(ValueError, match="`rate_hz` must be above 0"):
        SensorChannel(SHAPE, rate_hz=rate_hz)
