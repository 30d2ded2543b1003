"""Cause classifier on painted scenes: trained on edits, tested on other changes."""

import pickle

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from worldmodel.monitors.causes.additive_regression import PENALTY, softmax_regression
from worldmodel.monitors.causes.classifier import UNKNOWN, CauseModel, region
from worldmodel.monitors.causes.descriptors import ViewReference, pieces, reduced
from worldmodel.monitors.causes.edits import edited_episodes
from worldmodel.monitors.errors import NotFittedError

SHIFTS = {
    "nominal": {},
    "lighting": {"light": (0.5, 0.45, 0.4)},
    "background": {"table": (0.3, 0.35, 0.55)},
    "clutter": {"things": 5},
    "object": {"target": (0.15, 0.3, 0.9)},
    "end_effector": {"arm": (0.9, 0.55, 0.1)},
    "camera": {"turn": 0.5},
}


def paint(
    seed: int, frames: int = 12, turn: float = 0.0, things: int = 0, **colours: tuple
) -> np.ndarray:
    """An arm that carries a box to and fro above a table with a wall behind: [time, 64, 64, 3]."""
    rng = np.random.default_rng(seed)
    turn += rng.uniform(-0.02, 0.02)
    rows, columns = np.mgrid[:64, :64] - 32.0
    y = np.cos(turn) * rows - np.sin(turn) * columns + 32
    x = np.cos(turn) * columns + np.sin(turn) * rows + 32
    grain = 1 + 0.05 * np.sin(x / 2)[..., None]
    still = np.where(
        (y < 14)[..., None],
        (0.7, 0.72, 0.7),
        np.array(colours.get("table", (0.65, 0.5, 0.35))) * grain,
    )
    places = np.random.default_rng(seed + 1).uniform((20, 4), (60, 60), (things, 2))
    for place, colour in zip(
        places, rng.permutation(np.eye(3) * 0.7 + 0.2)[[0, 1, 2, 0, 1][:things]], strict=True
    ):
        still = np.where(
            (np.hypot(y - place[0], x - place[1]) < 3.5)[..., None], colour[[1, 2, 0]], still
        )
    light = np.array(colours.get("light", (1.0, 1.0, 1.0))) * rng.uniform(0.96, 1.04)
    start, film = rng.uniform(0, 6), []
    for t in range(frames):
        tip_x, tip_y = 32 + 20 * np.sin(start + t / 2), 34 + 12 * np.sin(start + t / 3)
        frame = np.where(
            ((abs(x - tip_x) < 4) & (y < tip_y))[..., None],
            colours.get("arm", (0.1, 0.1, 0.12)),
            still,
        )
        box = (abs(x - tip_x) < 3.5) & (abs(y - tip_y - 3) < 3.5)
        film.append(
            np.where(box[..., None], colours.get("target", (0.85, 0.12, 0.1)), frame) * light
        )
    noise = rng.normal(0, 0.006, (frames, 64, 64, 3))
    return np.round(255 * (np.stack(film) + noise).clip(0, 1)).astype(np.uint8)


def one_view(seed: int, **shift) -> np.ndarray:
    """The painted scene as an episode of one camera."""
    return paint(seed, **shift)[:, None]


@pytest.fixture(scope="module")
def model() -> CauseModel:
    """Fitted on twelve nominal scenes and their edits."""
    nominal = [one_view(seed) for seed in range(12)]
    return CauseModel().fit(nominal, edited_episodes(nominal, clip_frames=3, seed=0))


def watched(model: CauseModel, episode: np.ndarray) -> CauseModel:
    """The model after the first frames of an episode."""
    model.reset()
    for frame in episode[:5]:
        model.observe(frame)
    return model


@pytest.mark.parametrize("cause", list(SHIFTS)[1:])
def test_causes_of_unseen_scene_changes_are_named(model: CauseModel, cause: str) -> None:
    """None of these scenes is an edit, and none was learnt from."""
    named = [watched(model, one_view(seed, **SHIFTS[cause])).name()[0] for seed in range(50, 54)]
    assert named == [cause] * 4


def test_posterior_is_a_distribution_over_causes(model: CauseModel) -> None:
    posterior = watched(model, one_view(60)).posterior()
    assert list(posterior) == [*list(SHIFTS)[1:], UNKNOWN]
    assert sum(posterior.values()) == pytest.approx(1)
    assert min(posterior.values()) >= 0


def test_other_changes_are_unknown(model: CauseModel) -> None:
    episode, rng = one_view(60), np.random.default_rng(0)
    noisy = (episode + rng.normal(0, 30, episode.shape)).clip(0, 255).astype(np.uint8)
    for film in (noisy, episode[..., ::-1]):
        assert watched(model, film).name()[0] == UNKNOWN


def test_a_nominal_picture_has_no_cause(model: CauseModel) -> None:
    named = [watched(model, one_view(seed)).name()[0] for seed in range(60, 80)]
    assert named.count(UNKNOWN) >= 16


def test_no_frames_give_unknown(model: CauseModel) -> None:
    model.reset()
    assert model.name() == (UNKNOWN, 0.0)
    assert model.posterior() == {}
    assert model.where() is None


def test_reset_forgets(model: CauseModel) -> None:
    fresh = watched(model, one_view(70)).posterior()
    watched(model, one_view(71, **SHIFTS["lighting"]))
    assert watched(model, one_view(70)).posterior() == fresh


def test_memory_does_not_grow(model: CauseModel) -> None:
    episode = one_view(80, frames=40)
    sizes = []
    for frames in (3, 40):
        model.reset()
        for frame in episode[:frames]:
            model.observe(frame)
        sizes.append(len(pickle.dumps(model._evidence)))
    assert sizes[0] == sizes[1]


def test_arrays_restore_the_model(model: CauseModel) -> None:
    episode = one_view(90, **SHIFTS["object"])
    copy = CauseModel.from_arrays(model.arrays())
    assert watched(copy, episode).posterior() == watched(model, episode).posterior()
    assert copy.where() == model.where()
    assert copy.arrays().keys() == model.arrays().keys()


def test_most_deviating_view_decides() -> None:
    nominal = [np.stack([paint(seed, 8), paint(seed + 100, 8)], axis=1) for seed in range(4)]
    edited = edited_episodes(nominal, clip_frames=3, seed=0)
    model = CauseModel().fit(nominal, {cause: edited[cause] for cause in ("lighting", "clutter")})
    for view in range(2):
        shifts = [SHIFTS["lighting"] if number == view else {} for number in range(2)]
        films = [paint(50, **shift) for shift in shifts]
        assert watched(model, np.stack(films, axis=1)).name()[0] == "lighting"
        assert model.where() == (view, "the whole picture")


def test_region_is_named_in_thirds() -> None:
    places = np.ones((16, 16))
    assert region(np.where(np.arange(16) > 11, 9 * places, places)) in (
        "upper right third",
        "right third",
    )
    places[12:, :4] = 9
    assert region(places) == "lower left third"
    assert region(np.full((16, 16), 9.0)) == "the whole picture"
    middle = np.zeros((9, 9))
    middle[4, 4] = 1
    assert region(middle) == "centre"


def test_size_of_the_frames_does_not_matter() -> None:
    """Each pixel repeated twice by three times is the same picture."""
    reference = ViewReference().fit(
        [paint(seed) for seed in range(3)], rng=np.random.default_rng(0)
    )
    frame = paint(9, **SHIFTS["clutter"])[0]
    large = frame.repeat(2, axis=0).repeat(3, axis=1)
    departures = [reference.depart(picture).descriptors for picture in (frame, large)]
    np.testing.assert_array_equal(*departures)
    assert reduced(frame[:30, :100]).shape == (64, 64, 3)


def test_descriptors_measure_gain_and_new_colours() -> None:
    """A frame in half the light is explained by a gain of one half; new colours count as new."""
    films = [paint(seed) for seed in range(6)]
    reference = ViewReference().fit(films, rng=np.random.default_rng(0))
    lit, gain, new = 5, 6, 9
    nominal = reference.depart(films[0][0]).descriptors
    dim = reference.depart((films[0][0] * 0.5).astype(np.uint8)).descriptors
    assert dim[lit] > 0.8
    assert dim[gain] == pytest.approx(np.log(0.5), abs=0.1)
    assert nominal[gain] == pytest.approx(0, abs=0.06)
    strewn = reference.depart(paint(0, **SHIFTS["clutter"])[0]).descriptors
    assert strewn[new] > nominal[new] + 0.05


def test_pieces_are_counted_and_measured() -> None:
    mask = np.zeros((10, 10), bool)
    assert pieces(mask) == (0.0, 0.0)
    mask[:2, :2] = mask[5:8, 5:8] = mask[0, 9] = True  # the last is a speck
    assert pieces(mask) == pytest.approx((np.log(3), 0.3))


def test_regression_agrees_with_scikit_learn() -> None:
    """It weighs classes alike; a class without examples is left out of the mean loss."""
    rng = np.random.default_rng(0)
    classes = rng.choice(3, 120, p=[0.6, 0.3, 0.1])
    features = rng.normal(size=(120, 4)) + np.eye(3, 4)[classes]
    weights = softmax_regression(features, np.eye(3)[classes])
    oracle = LogisticRegression(
        C=1 / (PENALTY * 120), class_weight="balanced", tol=1e-9, max_iter=10_000
    ).fit(features, classes)
    np.testing.assert_allclose(weights[:-1].T, oracle.coef_, atol=1e-3)
    absent = softmax_regression(features, np.eye(4)[classes])
    log_odds = np.column_stack([features, np.ones(120)]) @ absent
    assert log_odds[:, 3].max() < log_odds[:, :3].max(axis=1).min()


def test_bad_input_is_refused(model: CauseModel) -> None:
    nominal = [one_view(0)]
    with pytest.raises(NotFittedError, match="not fitted"):
        CauseModel().observe(nominal[0][0])
    with pytest.raises(ValueError, match="`frame` must have 1 views, got 2"):
        model.observe(np.zeros((2, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="at least two causes"):
        CauseModel().fit(nominal, {"lighting": nominal})
    with pytest.raises(ValueError, match="stronger"):
        CauseModel().fit(nominal * 2, {"lighting": nominal, "camera": []})


def test_names_of_earlier_versions_become_those_of_the_factors() -> None:
    arrays = {
        "causes": np.frombuffer(b"lighting\ntarget\nembodiment", np.uint8),
        "num_views": np.array([0]),
    }
    assert CauseModel.from_arrays(arrays).causes_ == ("lighting", "object", "end_effector")
