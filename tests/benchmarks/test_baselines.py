"""Surprise scores beside the confidence head, and the probabilities made from them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.calibration.baselines import (
    BASELINES,
    DROPOUT,
    FLOOR,
    divided_by_motion,
    dropout,
    ensemble,
    motion,
    passes_per_frame,
)
from benchmarks.calibration.rescore import ScoredFrame, by_segment, rescore, segment_batches
from benchmarks.calibration.score_curves import ScoreConfidence, fit_scores, with_confidence
from worldmodel.episodes.clips import LatentBatch, full_view_mask
from worldmodel.imagination import DynamicsRollout
from worldmodel.model import WorldModel
from worldmodel.monitors.reliability.measures import bin_forecasts, expected_calibration_error
from worldmodel.networks.sampler import Sampling
from worldmodel.rollouts.open_loop import EPSILONS, EpisodeRollouts, roll_out

LENGTHS = (6, 8)
SEED = 5


def noise_episode(length: int, seed: int, views: int = 1) -> LatentBatch:
    """An episode of latents and actions that mean nothing."""
    generator = torch.Generator().manual_seed(seed)
    return LatentBatch(
        torch.randn(1, length, views, 2, 4, 4, generator=generator).half(),
        torch.randn(1, length, 7, generator=generator),
        torch.ones(1, length, dtype=torch.bool),
        torch.zeros(1, length),
    )


Case = tuple[WorldModel, list[LatentBatch], list[EpisodeRollouts]]


@pytest.fixture
def case(make_model: Callable[..., WorldModel]) -> Case:
    """A small model, two episodes, and rollouts in stretches of 2 frames."""
    model = make_model()
    episodes = [noise_episode(length, seed) for seed, length in enumerate(LENGTHS)]
    return model, episodes, roll_out(model, episodes, horizon=2, seed=SEED)


def missing_one_view(episode: LatentBatch) -> LatentBatch:
    """The same without its second view from the third frame on."""
    view_mask = full_view_mask(episode)
    view_mask[:, 2:, 1] = False
    latents = episode.latents.masked_fill(~view_mask[..., None, None, None], 0)
    return replace(episode, latents=latents, view_valid=view_mask)


@pytest.mark.parametrize("name", BASELINES)
def test_scores_follow_from_the_seed_and_stand_where_something_was_imagined(
    case: Case, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "benchmarks.calibration.baselines.NUM_SAMPLES", 3
    )  # as many more take longer
    model, episodes, rollouts = case
    baseline = BASELINES[name]
    scores = baseline.score(model, episodes, rollouts, seed=SEED)
    again = baseline.score(model, episodes, rollouts, seed=SEED)
    for score, same, rollout in zip(scores, again, rollouts, strict=True):
        torch.testing.assert_close(score, same, rtol=0, atol=0)
        assert score.shape == rollout.imagined.shape
        assert score.min() >= 0
        assert score[rollout.horizon == 0].abs().max() == 0
        if name != "base rate":
            assert score[rollout.horizon > 0].flatten(1).amax(1).min() > 0


@pytest.mark.parametrize("name", ["sampling variance", "denoising residual", "MC dropout"])
def test_random_scores_change_with_the_seed(
    case: Case, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.calibration.baselines.NUM_SAMPLES", 2)
    model, episodes, rollouts = case
    one, other = (
        BASELINES[name].score(model, episodes, rollouts, seed=seed)[0] for seed in (SEED, SEED + 1)
    )
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", ["MC dropout", "flow instability / motion", "round trip"])
def test_missing_views_score_zero(make_model: Callable[..., WorldModel], name: str) -> None:
    model = make_model(views=2)
    model.config.__dict__["cameras"] = ("front", "side")
    episodes = [missing_one_view(noise_episode(6, 0, views=2)), noise_episode(6, 1, views=2)]
    rollouts = roll_out(model, episodes, horizon=2, seed=SEED)
    scores = BASELINES[name].score(model, episodes, rollouts, seed=SEED)
    assert scores[0][2:, 1].abs().max() == 0
    assert min(scores[0][4:, 0].max(), scores[1][4:, 1].max()) > 0


def test_an_ensemble_of_one_network_agrees_with_itself(
    case: Case, random_weights: Callable[..., None]
) -> None:
    model, episodes, rollouts = case
    same = ensemble([model, model]).score(model, episodes, rollouts, seed=SEED)
    assert max(float(score.max()) for score in same) < 1e-6
    random_weights(model.dynamics, 1)
    others = roll_out(model, episodes, horizon=2, seed=SEED)
    apart = ensemble([model]).score(model, episodes, rollouts, seed=SEED)
    for score, one, two in zip(apart, rollouts, others, strict=True):
        # The standard deviation of two numbers is their distance over the root of two.
        expected = (one.imagined - two.imagined).abs() / 2**0.5
        assert expected.max() > 0.1
        torch.testing.assert_close(score, expected, atol=1e-5, rtol=1e-4)


def test_an_ensemble_refuses_members_with_other_latents(
    case: Case, make_model: Callable[..., WorldModel], random_weights: Callable[..., None]
) -> None:
    model, episodes, rollouts = case
    stranger = make_model()
    random_weights(stranger, 1)  # its tokenizer too
    with pytest.raises(ValueError, match="must have the tokenizer"):
        ensemble([stranger]).score(model, episodes, rollouts, seed=SEED)


def test_dropout_silences_hidden_units_and_leaves_nothing_behind(case: Case) -> None:
    model, episodes, rollouts = case
    second = model.dynamics.spatial[0].mlp[2]
    before = second.weight.detach().clone()
    with dropout(model, generator=torch.Generator().manual_seed(0)):
        silent = (second.weight == 0).all(0)
        assert 0 < silent.sum() < len(silent)
        torch.testing.assert_close(second.weight[:, ~silent], before[:, ~silent] / (1 - DROPOUT))
        changed = roll_out(model, episodes, horizon=2, seed=SEED)
    assert not torch.equal(changed[0].imagined, rollouts[0].imagined)
    after = roll_out(model, episodes, horizon=2, seed=SEED)
    assert torch.equal(after[0].imagined, rollouts[0].imagined)
    with (
        pytest.raises(RuntimeError, match="inside"),
        dropout(model, generator=torch.Generator()),
    ):
        raise RuntimeError("inside")
    assert torch.equal(second.weight, before)


def test_going_back_shows_each_frame_with_the_past_it_was_imagined_from(case: Case) -> None:
    """Denoising the rollout's own noise again gives the rollout's own frames."""
    model, episodes, rollouts = case
    for _, segments in segment_batches(episodes, rollouts, SEED):
        generators = [torch.Generator().manual_seed(seed) for seed in segments.inputs.seeds]

        def again(
            frame: ScoredFrame, generators: Sequence[torch.Generator] = generators
        ) -> torch.Tensor:
            shape = frame.latent.shape[1:]
            noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
            return frame.denoise(noise, 1.0)

        made = rescore(model, segments, again)
        torch.testing.assert_close(made, segments.imagined, atol=1e-4, rtol=1e-4)


def test_segments_cover_every_imagined_frame_once(case: Case) -> None:
    model, episodes, rollouts = case
    counts = by_segment(lambda _, segments: torch.ones_like(segments.imagined))(
        model, episodes, rollouts, seed=SEED
    )
    for count, rollout in zip(counts, rollouts, strict=True):
        expected = torch.from_numpy(rollout.horizon > 0)[:, None, None, None, None]
        assert torch.equal(count.bool(), expected.expand(count.shape))


def test_motion_is_measured_from_the_frame_the_model_saw(case: Case) -> None:
    _, _, rollouts = case
    rollout = rollouts[1]
    moved = motion(rollout)
    assert rollout.horizon.tolist() == [0] * 4 + [1, 2] * 2
    torch.testing.assert_close(moved[6], (rollout.imagined[6] - rollout.truth[5]).abs())
    torch.testing.assert_close(moved[7], (rollout.imagined[7] - rollout.imagined[6]).abs())
    (divided,) = divided_by_motion([torch.ones_like(moved)], [rollout])
    torch.testing.assert_close(divided, 1 / (moved + FLOOR))


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(num_steps=3), Sampling(num_steps=3, method="heun")]
)
def test_passes_are_counted_as_the_network_takes_them(
    case: Case, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, episodes, _ = case
    counted = {"step": 0, "frame": 0}
    step, next_frame = model.dynamics.step, DynamicsRollout.next_frame

    def counted_step(*values: object, **options: object) -> object:
        counted["step"] += 1
        return step(*values, **options)

    def counted_frame(*values: object) -> object:
        counted["frame"] += 1
        return next_frame(*values)

    monkeypatch.setattr(model.dynamics, "step", counted_step)
    monkeypatch.setattr(DynamicsRollout, "next_frame", counted_frame)
    roll_out(model, episodes[:1], horizon=2, seed=0, sampling=sampling)
    starts = 1  # one pass over the context of the one rollout
    assert counted["step"] - starts == counted["frame"] * passes_per_frame(sampling)


@pytest.mark.parametrize("name", BASELINES)
def test_stated_cost_is_what_the_network_is_asked_for(
    case: Case, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, episodes, _ = case
    rollouts = roll_out(model, episodes[:1], horizon=2, seed=0)  # one segments of 2 frames
    passes = 0
    step = model.dynamics.step

    def counted_step(inputs: object, cache: object, *, keep: bool) -> object:
        nonlocal passes
        passes += not keep
        return step(inputs, cache, keep=keep)

    monkeypatch.setattr(model.dynamics, "step", counted_step)
    BASELINES[name].score(model, episodes[:1], rollouts, seed=0)
    cost = BASELINES[name].cost
    # Every whole rollout also remembers each frame, which going back does once for all.
    remembering = {"sampling variance, 4 steps": 8}.get(name, 0)
    assert passes == 2 * (cost.rollouts + cost.passes - remembering)


def drawn_scores(n: int = 40_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, errors that grow with them, and horizons 1 to 16."""
    random = np.random.default_rng(0)
    scores = random.gamma(2.0, 3.0, n)
    horizons = random.integers(1, 17, n)
    errors = np.abs(random.normal(0, 0.05 * np.sqrt(scores * horizons)))
    return scores, errors, horizons


def test_score_confidence_is_calibrated_on_what_it_learned_from() -> None:
    scores, errors, horizons = drawn_scores()
    fitted = ScoreConfidence().fit(scores, errors, horizons)
    for horizon in (1, 5, 16):
        rows = horizons == horizon
        stated = fitted.predict(scores[rows], horizon=horizon)
        for level, epsilon in enumerate(EPSILONS):
            bins = bin_forecasts(stated[:, level], errors[rows] <= epsilon)
            # About 2,500 forecasts a horizon: a perfect forecaster has 0.02 by chance.
            assert float(expected_calibration_error(bins)) < 0.05


def test_score_confidence_falls_with_the_score_and_rises_with_epsilon() -> None:
    scores, errors, horizons = drawn_scores()
    fitted = ScoreConfidence().fit(scores, errors, horizons)
    stated = fitted.predict(np.linspace(0, 40, 300), horizon=4)
    assert (np.diff(stated, axis=0) <= 0).all()
    assert (np.diff(stated, axis=1) >= 0).all()
    assert stated[0, 2] - stated[-1, 2] > 0.3  # it does fall


def test_score_confidence_ignores_the_units_of_a_score() -> None:
    scores, errors, horizons = drawn_scores()
    one = ScoreConfidence().fit(scores, errors, horizons).predict(scores[:99], horizon=3)
    cubed = ScoreConfidence().fit(scores**3, errors, horizons).predict(scores[:99] ** 3, horizon=3)
    np.testing.assert_allclose(one, cubed, atol=0.01)


def test_a_constant_score_states_how_often_each_band_of_horizons_is_right() -> None:
    scores, errors, horizons = drawn_scores()
    fitted = ScoreConfidence().fit(np.zeros_like(scores), errors, horizons)
    for horizon, band in ((1, [1]), (5, [5, 6]), (99, [13, 14, 15, 16])):
        rate = [(errors[np.isin(horizons, band)] <= epsilon).mean() for epsilon in EPSILONS]
        np.testing.assert_allclose(fitted.predict(np.zeros(3), horizon=horizon), [rate] * 3)


@pytest.mark.parametrize(
    ("scores", "horizons", "message"),
    [([0.0, np.nan], [1, 1], "finite"), ([], [], "at least one"), ([1.0], [0], "at least 1")],
)
def test_score_confidence_refuses_what_it_cannot_learn_from(
    scores: list[float], horizons: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreConfidence().fit(
            np.array(scores, float), np.zeros(len(scores)), np.array(horizons, int)
        )


def test_rollouts_carry_the_confidence_made_from_scores(case: Case) -> None:
    model, episodes, rollouts = case
    scores = BASELINES["copy of last frame"].score(model, episodes, rollouts, seed=SEED)
    fitted = fit_scores(rollouts, scores)
    stated = with_confidence(rollouts, scores, fitted)
    row = int(np.flatnonzero(rollouts[0].horizon == 2)[0])
    expected = fitted.predict(scores[0][row].numpy(), horizon=2)
    np.testing.assert_allclose(stated[0].confidence[row].numpy(), expected, atol=1e-3)
    assert (stated[0].confidence[rollouts[0].horizon == 0] == 1).all()
    assert torch.equal(stated[0].imagined, rollouts[0].imagined)
