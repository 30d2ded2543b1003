"""Camera setup check: setup faults are named, unfamiliar pictures are not faults."""

from pathlib import Path

import numpy as np
import pytest

from worldmodel.monitors import EpisodeSignals, Level, MonitorConfig, RuntimeMonitor
from worldmodel.monitors.channels.camera_mounting import MIX_UPS, CameraSetupCheck, thumbnails

SIDE = 32
ROWS, COLUMNS = np.indices((SIDE, SIDE)) / SIDE
TABLE = np.stack([180 - 40 * ROWS, 130 - 30 * COLUMNS, 90 + 40 * COLUMNS], axis=-1)
"""Darker below and bluer to the right; red everywhere."""


def film(seed: int, scene: np.ndarray = TABLE) -> np.ndarray:
    """Six frames of a scene in some light, with noise and a moving block."""
    rng = np.random.default_rng(seed)
    frames = scene * rng.uniform(0.85, 1.15) + rng.normal(0, 6, (6, SIDE, SIDE, 3))
    for t, frame in enumerate(frames):
        y, x = rng.integers(4, 20), 4 + 3 * t
        frame[y : y + 8, x : x + 4] = rng.uniform(0, 255, 3)
    return frames.clip(0, 255).astype(np.uint8)


def pair(seed: int) -> np.ndarray:
    """Two cameras; the second sees another scene."""
    return np.stack([film(seed), film(seed + 1000, 255 - TABLE[::-1])], axis=1)


@pytest.fixture(scope="module")
def mounting() -> CameraSetupCheck:
    return CameraSetupCheck().fit([film(seed) for seed in range(30)])


@pytest.fixture(scope="module")
def two() -> CameraSetupCheck:
    return CameraSetupCheck().fit([pair(seed) for seed in range(30)])


WRONG = {
    "colours": lambda frame: frame[..., ::-1],
    "flipped": lambda frame: frame[..., ::-1, :, :],
    "mirrored": lambda frame: frame[..., :, ::-1, :],
    "turned": lambda frame: np.rot90(frame, 2, axes=(-3, -2)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_each_setup_fault_is_named(mounting: CameraSetupCheck, kind: str) -> None:
    for frame in np.concatenate([film(seed) for seed in range(100, 110)]):
        assert mounting.find(frame[None]) is None
        found = mounting.find(WRONG[kind](frame)[None])
        assert found is not None
        assert (found.kind, found.views) == (kind, (0,))


def test_fault_message_is_a_sentence(mounting: CameraSetupCheck, two: CameraSetupCheck) -> None:
    said = str(mounting.find(film(100)[:1, ..., ::-1]))
    assert said == "view 0 has its colour channels in BGR order."
    assert str(two.find(pair(100)[0, ::-1])) == "views 0 and 1 are exchanged."


def changes(rng: np.random.Generator) -> dict[str, np.ndarray]:
    frame = film(200)[0].astype(float)
    return {
        "dark": frame * 0.4,
        "bright": frame * 1.5,
        "bluish": frame * (0.6, 0.8, 1.4),
        "grey": np.repeat(frame.mean(-1, keepdims=True), 3, axis=-1),
        "negative": 255 - frame,
        "green table": frame * (0.3, 1.3, 0.4),
        "noise": rng.uniform(0, 255, frame.shape),
        "lit from the other side": frame * np.linspace(1.5, 0.4, SIDE)[None, :, None],
        "shifted": np.roll(frame, 10, axis=1),
        "zoomed": frame[8:24, 8:24].repeat(2, axis=0).repeat(2, axis=1),
        "quarter turn": np.rot90(frame),
        "checks": 255.0 * ((np.indices((SIDE, SIDE)) // 4).sum(0) % 2)[..., None] + np.zeros(3),
    }


@pytest.mark.parametrize("name", changes(np.random.default_rng(0)))
def test_unfamiliar_picture_is_not_a_setup_fault(mounting: CameraSetupCheck, name: str) -> None:
    picture = changes(np.random.default_rng(0))[name].clip(0, 255).astype(np.uint8)
    assert mounting.find(picture[None]) is None


def test_faults_are_found_in_one_or_both_of_two_views(two: CameraSetupCheck) -> None:
    frames = pair(300)
    for frame in frames:
        assert two.find(frame) is None
        for view in (0, 1):
            broken = frame.copy()
            broken[view] = broken[view, ::-1]
            found = two.find(broken)
            assert found is not None
            assert (found.kind, found.views) == ("flipped", (view,))
        both = two.find(frame[..., ::-1])
        assert both is not None
        assert both.kind == "colours"


def test_indistinguishable_faults_are_not_checked() -> None:
    even = (TABLE + TABLE[:, ::-1]) / 2
    grey = np.repeat(even.mean(-1, keepdims=True), 3, axis=-1)
    mounting = CameraSetupCheck().fit([film(seed, grey) for seed in range(30)])
    assert {mix_up.kind for mix_up in mounting.weights_} == {"flipped", "turned"}
    mixed = [film(seed)[:, :, :: (-1) ** seed] for seed in range(30)]  # half of them mirrored
    kinds = {mix_up.kind for mix_up in CameraSetupCheck().fit(mixed).weights_}
    assert kinds == {"colours", "flipped"}
    same = np.repeat(np.stack([film(seed) for seed in range(30)])[:, :, None], 2, axis=2)
    assert "cameras" not in {mix_up.kind for mix_up in CameraSetupCheck().fit(list(same)).weights_}


def test_grey_camera_upside_down_is_detected() -> None:
    def grey(seed: int) -> np.ndarray:
        return np.repeat(film(seed)[..., :1], 3, axis=-1)

    mounting = CameraSetupCheck().fit([grey(seed) for seed in range(30)])
    assert "colours" not in {mix_up.kind for mix_up in mounting.weights_}
    found = mounting.find(grey(100)[:1, ::-1])
    assert found is not None
    assert found.kind == "flipped"


def test_one_mirrored_looking_reference_frame_does_not_disable_the_check(
    mounting: CameraSetupCheck,
) -> None:
    films = [film(seed) for seed in range(30)]
    plain = (TABLE + TABLE[:, ::-1]) / 2  # neither mirrored nor not
    films[3][2] = film(3, plain)[2]
    kinds = {mix_up.kind for mix_up in CameraSetupCheck().fit(films).weights_}
    assert kinds == {mix_up.kind for mix_up in mounting.weights_}
    films[3][2] = films[3][2, :, ::-1]
    films[4][1] = film(4)[1, :, ::-1]
    assert "mirrored" not in {mix_up.kind for mix_up in CameraSetupCheck().fit(films).weights_}


def test_too_few_episodes_disable_the_check() -> None:
    mounting = CameraSetupCheck().fit([film(seed) for seed in range(9)])
    assert mounting.weights_ == {}
    assert mounting.find(film(100)[:1, ::-1]) is None


def test_every_fault_is_its_own_inverse() -> None:
    views = thumbnails(pair(0))
    for change, _ in MIX_UPS.values():
        assert not np.array_equal(change(views), views)
        np.testing.assert_array_equal(change(change(views)), views)


@pytest.mark.parametrize("shape", [(32, 48), (17, 23), (16, 8), (5, 3), (1, 1)])
def test_thumbnails_keep_the_mean_and_turn_with_the_picture(shape: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1, *shape, 3), dtype=np.uint8)
    small = thumbnails(frame)
    assert small.shape == (1, 1, min(16, shape[0]), min(16, shape[1]), 3)
    if shape == (32, 48):
        np.testing.assert_allclose(small[0, 0, 3, 5], frame[0, 6:8, 15:18].mean(axis=(0, 1)))
        np.testing.assert_allclose(thumbnails(frame[:, ::-1, ::-1]), small[:, :, ::-1, ::-1])
    flat = thumbnails(np.full_like(frame, 77))
    np.testing.assert_allclose(flat, 77)


def test_monitor_fits_saves_and_reports_the_fault(tmp_path: Path) -> None:
    config = MonitorConfig(alpha_notice=0.1, alpha_degrade=0.1, alpha_stop=0.1)
    episodes = [EpisodeSignals(frames=film(seed)) for seed in range(40)]
    monitor = RuntimeMonitor(config).fit(episodes, frame_shape=(SIDE, SIDE, 3), rate_hz=5.0)
    monitor.save(tmp_path)
    loaded = RuntimeMonitor.load(tmp_path)
    for watched in (monitor, loaded, loaded.sibling()):
        watched.reset()
        healthy = watched.update({"image": film(100)[0], "time_s": 1.0}, None)
        assert not any(cause.startswith("sensor.") for cause in healthy.causes)
        turned = watched.update({"image": film(100)[1, ::-1, ::-1], "time_s": 1.2}, None)
        assert (turned.level, turned.causes) == (Level.STOP, ("sensor.swapped",))
        note = turned.evidence["sensor.swapped"].note
        assert note == "view 0 is turned by 180 degrees."
        late = watched.update({"image": film(100)[2], "time_s": 1.6}, None)
        assert late.causes == ("sensor.late",)
