"""The sensor channel names what is broken, and lets healthy input pass."""

import numpy as np
import pytest

from worldmodel.monitors.sensor import SensorChannel, SensorError

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


def test_healthy_frames_pass_plain_or_in_a_mapping() -> None:
    channel = SensorChannel(SHAPE)
    for seed in range(10):
        np.testing.assert_array_equal(channel.check({"image": picture(seed)}, MOVE), picture(seed))
        channel.check(picture(seed + 100)[::-1, ::-1], MOVE)  # strides do not matter
        channel.check(picture(seed + 200), None)


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
    with pytest.raises(SensorError, match="view 0 shows 4 equal frames while the robot moves"):
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
    for _ in range(10):
        channel.check(picture(0), MOVE)
        channel.reset()
