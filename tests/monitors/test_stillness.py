"""Stillness check: pictures frozen but for noise, frozen halves, and what is no fault."""

from collections.abc import Callable

import numpy as np
import pytest

from worldmodel.monitors.channels.sensor import SensorChannel, SensorError
from worldmodel.monitors.channels.stillness import StillnessCheck

SIDE, TIME, ONSET = 32, 30, 14
MOVE = np.array([0.012, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
Film = np.ndarray


def film(rng: np.random.Generator, noise: float = 0.0) -> Film:
    """A bright bar that crosses the picture along its diagonal, one pixel a frame."""
    frames = np.full((TIME, SIDE, SIDE, 3), 90.0)
    phase = rng.integers(0, SIDE)
    for t in range(TIME):
        at = (t + phase) % SIDE
        rows = np.arange(at, at + 6) % SIDE
        frames[t][np.ix_(rows, np.arange(8, 24))] = 200
    frames += noise * rng.standard_normal(frames.shape)
    return frames.clip(0, 255).round().astype(np.uint8)


def motion() -> np.ndarray:
    return np.tile(MOVE[:6], (TIME, 1))


def fitted(noise: float, count: int = 12) -> StillnessCheck:
    rng = np.random.default_rng(0)
    return StillnessCheck().fit([(film(rng, noise), motion()) for _ in range(count)])


def frozen_but_for_noise(frames: Film) -> Film:
    rng = np.random.default_rng(9)
    broken = frames.copy()
    shown = frames[ONSET - 1] + 2 * rng.standard_normal(frames[ONSET:].shape)
    broken[ONSET:] = shown.clip(0, 255).round()
    return broken


def frozen_half(frames: Film) -> Film:
    broken = frames.copy()
    broken[ONSET:, : SIDE // 2] = frames[ONSET - 1, : SIDE // 2]
    return broken


def first_fault(check: StillnessCheck, frames: Film, **reset: bool) -> int | None:
    channel = SensorChannel(frames.shape[1:], stillness=check)
    for t, frame in enumerate(frames):
        if reset.get("every_step"):
            channel.reset()
        try:
            channel.check(frame, MOVE)
        except SensorError as error:
            return t if error.code == "frozen" else None
    return None


@pytest.mark.parametrize("noise", [0.0, 2.0])
@pytest.mark.parametrize("fault", [frozen_but_for_noise, frozen_half])
def test_faults_are_found_within_four_frames(noise: float, fault: Callable[[Film], Film]) -> None:
    check = fitted(noise)
    found = 0
    for seed in range(20, 44):
        frames = film(np.random.default_rng(seed), noise)
        assert first_fault(check, frames) is None
        bar_is_above = (frames[ONSET - 4 : ONSET, SIDE // 2 :] < 150).all()
        if fault is frozen_half and noise == 0 and not bar_is_above:
            continue  # nothing moved there: nothing is hidden
        t = first_fault(check, fault(frames))
        assert t in range(ONSET + 1, ONSET + 4)
        found += 1
    assert found >= 3


def test_reset_with_every_step_does_not_hide_a_frozen_camera() -> None:
    check = fitted(2.0)
    frames = film(np.random.default_rng(40), 2.0)
    assert first_fault(check, frames, every_step=True) is None
    found = first_fault(check, frozen_but_for_noise(frames), every_step=True)
    assert found in range(ONSET + 1, ONSET + 4)


def test_exact_repeats_are_found_through_resets_too() -> None:
    channel = SensorChannel((SIDE, SIDE, 3))
    frame = film(np.random.default_rng(1))[0]
    for _ in range(3):
        channel.check(frame, MOVE)
        channel.reset()
    with pytest.raises(SensorError, match="shows the same frame 4 times"):
        channel.check(frame, MOVE)


def test_a_robot_that_is_not_commanded_to_move_may_see_the_same() -> None:
    check = fitted(2.0)
    frames = frozen_but_for_noise(film(np.random.default_rng(41), 2.0))
    channel = SensorChannel(frames.shape[1:], stillness=check)
    for frame in frames[ONSET:]:
        channel.check(frame, np.zeros(7))


def test_halves_that_familiar_episodes_leave_at_once_are_no_fault() -> None:
    rng = np.random.default_rng(0)
    videos = [frozen_half(film(rng)) for _ in range(12)]
    check = StillnessCheck().fit([(video, motion()) for video in videos])
    assert first_fault(check, frozen_half(film(np.random.default_rng(20)))) is None


def test_few_episodes_check_nothing() -> None:
    check = fitted(2.0, count=9)
    assert first_fault(check, frozen_but_for_noise(film(np.random.default_rng(42), 2.0))) is None


def test_saved_and_loaded_checks_are_equal() -> None:
    check = fitted(0.0)
    again = StillnessCheck.from_arrays(check.arrays())
    frames = frozen_but_for_noise(film(np.random.default_rng(43)))
    found = first_fault(check, frames)
    assert found is not None
    assert first_fault(again, frames) == found
