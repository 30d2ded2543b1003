"""Nuisances: what each does to a picture, and their declarations."""

import numpy as np
import pytest

from worldmodel.monitors.nuisances import DEFAULTS, KINDS, Nuisance, declared


def film(views: tuple[int, ...] = ()) -> np.ndarray:
    """Smooth pictures with an edge."""
    ramp = np.linspace(30, 200, 24)
    frames = np.zeros((3, *views, 16, 24, 3)) + ramp[:, None]
    frames[..., 4:9, 6:12, :] = (220, 40, 30)
    return frames.astype(np.uint8)


@pytest.mark.parametrize("views", [(), (2,)])
@pytest.mark.parametrize("nuisance", declared(DEFAULTS), ids=lambda nuisance: nuisance.name)
def test_copies_are_like_the_original(nuisance: Nuisance, views: tuple[int, ...]) -> None:
    frames = film(views)
    before = frames.copy()
    copy = nuisance(frames, seed=3)
    assert copy.shape == frames.shape
    assert copy.dtype == np.uint8
    assert np.array_equal(frames, before), "the original is left alone"
    assert np.array_equal(copy, nuisance(frames, seed=3))
    change = np.abs(copy.astype(float) - frames).mean()
    assert 0.1 < change < 25
    weaker = np.abs(nuisance(frames, 0.5, seed=3).astype(float) - frames).mean()
    assert weaker <= change


def test_amounts_mean_what_they_say() -> None:
    frames = film()
    assert Nuisance("exposure", 0.1)(frames)[0, 0, 5, 0] == round(frames[0, 0, 5, 0] * 1.1)
    darker = 255 * (frames[0, 0, 5, 0] / 255) ** 1.2
    assert Nuisance("gamma", 0.2)(frames)[0, 0, 5, 0] == round(darker)
    grey = np.full((4, 64, 64, 3), 128, np.uint8)
    assert Nuisance("noise", 3.0)(grey).std() == pytest.approx(3, abs=0.1)
    moved = Nuisance("shift", 2.0)(frames, seed=0)
    steps = [(2, 1), (-2, 1), (2, 2), (-2, 2)]
    inner = np.s_[:, 3:-3, 3:-3]
    assert any(np.array_equal(np.roll(frames, s, a)[inner], moved[inner]) for s, a in steps)


def test_scaling_down_and_up_keeps_flat_areas_and_softens_edges() -> None:
    frames = film()
    small = Nuisance("scale", 0.5)(frames)
    flat = np.full((1, 10, 14, 3), 77, np.uint8)
    assert (Nuisance("scale", 0.3)(flat) == 77).all()
    edge = np.abs(np.diff(frames[0, 6, :, 0].astype(int))).max()
    assert np.abs(np.diff(small[0, 6, :, 0].astype(int))).max() < edge


def test_exposure_and_gamma_are_declared_in_both_directions() -> None:
    names = [nuisance.name for nuisance in declared(DEFAULTS)]
    assert names == [
        "jpeg 75", "scale 0.75", "exposure +0.1", "exposure -0.1", "gamma +0.1", "gamma -0.1",
        "noise 3", "shift 1", "blur 0.7",
    ]  # fmt: skip
    assert declared(["none"]) == ()


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        (["fog:1"], "Unknown nuisance 'fog:1'; use some of jpeg:75"),
        (["jpeg"], "'jpeg' needs a number from 1 to 100 after the colon, for example jpeg:75"),
        (["jpeg:0"], "needs a number from 1 to 100"),
        (["noise:nan"], "needs a number"),
        (["blur:x"], "needs a number"),
        (["noise:1", "noise:2"], "The nuisance noise is declared twice"),
        (["none", "noise:1"], "Unknown nuisance 'none'"),
    ],
)
def test_wrong_declarations_are_refused(specs: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        declared(specs)


def test_every_example_is_a_valid_declaration() -> None:
    assert declared([f"{kind}:{made.example}" for kind, made in KINDS.items()])
