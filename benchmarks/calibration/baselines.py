"""Other ways to say how surprising an imagined subpatch is: what a confidence head has to beat.

Each judges frames that are there already, `EpisodeRollouts` of one model, and gives every subpatch
a surprise score, higher = more surprising; `ScoreConfidence` turns scores into probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from benchmarks.calibration.rescore import Score, ScoredFrame, Scores, Window, by_window, rescore
from worldmodel.episodes.clips import LatentBatch, latents_name
from worldmodel.imagination import imagine
from worldmodel.model import WorldModel
from worldmodel.networks.dynamics import Dynamics
from worldmodel.networks.images import to_model
from worldmodel.networks.noise_schedule import Flow
from worldmodel.networks.rollout import RolloutInputs, RowNoise
from worldmodel.networks.sampler import Sampling
from worldmodel.rollouts.open_loop import EpisodeRollouts

NUM_SAMPLES = 8
"""Samples of a rollout, the judged one included, or passes with dropout."""
DROPOUT = 0.1
"""Share of a perceptron's hidden units that dropout silences."""
FEW_STEPS = Sampling(num_steps=4)
"""A sampler whose samples differ, as those of the one-step sampler (a posterior mean) hardly do."""
NUM_SEEDS = 4
"""Denoisings of one frame of which the seed variance is taken."""
MID_LEVEL = 0.5
"""Noise level that a frame is put back to and denoised from again."""
FLOOR = 0.1
"""Added to motion before dividing by it, in latent standard deviations."""
SEED_STRIDE = 1_000_003
"""Between the seeds of one sample and the next; that of the judged rollout comes first."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a score takes on top of the rollout it judges, if computed along with it."""

    rollouts: int = 0
    """Whole rollouts as the checkpoint draws them."""
    passes: int = 0
    """Further passes of the network per frame."""
    round_trips: int = 0
    """Frames decoded and encoded per frame."""

    def relative(self, sampling: Sampling) -> float:
        """Passes of the network, the judged rollout's included, per pass of that rollout.

        >>> Cost(rollouts=2).relative(Sampling()), Cost(passes=1).relative(Sampling())
        (3.0, 1.5)
        """
        return 1 + self.rollouts + self.passes / passes_per_frame(sampling)


def passes_per_frame(sampling: Sampling) -> int:
    """Passes of the network that a rollout takes per frame: to sample it, and to remember it.

    >>> passes_per_frame(Sampling()), passes_per_frame(Sampling(num_steps=4, method="heun"))
    (2, 8)
    """
    steps = sampling.num_steps
    evaluations = 2 * steps - 1 if sampling.method == "heun" else steps
    return evaluations * (1 if sampling.guidance == 1 else 2) + 1


@dataclass(frozen=True)
class Baseline:
    """A surprise score and what it costs."""

    score: Score
    cost: Cost


def sampled(model: WorldModel, inputs: RolloutInputs, sampling: Sampling | None = None) -> Tensor:
    """Latents of rollouts, without confidence."""
    none = inputs.context.new_empty(0)
    drawn = sampling or model.sampling
    return imagine(model.dynamics, None, inputs, sampling=drawn, epsilon=none).latents


def other_seeds(inputs: RolloutInputs, number: int) -> RolloutInputs:
    """The same rollouts with the seeds of another sample; number 0 keeps them."""
    return replace(inputs, seeds=[seed + number * SEED_STRIDE for seed in inputs.seeds])


def spread(samples: Sequence[Tensor]) -> Tensor:
    """Standard deviation over samples, each of the same shape."""
    return torch.stack(list(samples)).std(0)


def ensemble(members: Sequence[WorldModel]) -> Baseline:
    """Spread between the judged rollout and those of other networks with the same seeds.

    Deep ensembles (Lakshminarayanan et al. 2017, arXiv:1612.01474): `members`, without the judged
    model, were trained on the same latents from other random weights.
    """

    def score(model: WorldModel, window: Window) -> Tensor:
        for member in members:
            if latents_name(member) != latents_name(model):
                raise ValueError(
                    "`members` must imagine the latents of the judged model, of the same tokenizer,"
                    " cameras and rate; train them with recipes/train_ensemble.py."
                )
        return spread([window.imagined, *(sampled(member, window.inputs) for member in members)])

    return Baseline(by_window(score), Cost(rollouts=len(members)))


def sampling_variance(model: WorldModel, window: Window) -> Tensor:
    """Spread between samples from the checkpoint's own sampler, the judged one among them."""
    others = range(1, NUM_SAMPLES)
    return spread(
        [window.imagined, *(sampled(model, other_seeds(window.inputs, k)) for k in others)]
    )


def few_step_variance(model: WorldModel, window: Window) -> Tensor:
    """Spread between samples from a sampler of several steps."""
    numbers = range(1, NUM_SAMPLES + 1)
    return spread([sampled(model, other_seeds(window.inputs, k), FEW_STEPS) for k in numbers])


@contextmanager
def dropout(model: WorldModel, *, generator: Generator) -> Iterator[None]:
    """Inside, a share `DROPOUT` of the hidden units of every perceptron is silent.

    The same units for every frame, position and rollout, as Gal & Ghahramani 2016
    (arXiv:1512.05287) drop them in networks that step through time. The weights behind silent units
    are set to zero, for the blocks are functions of weights and call no module a hook could sit on;
    on leaving, the weights are what they were, bit by bit.
    """
    if not isinstance(model.dynamics, Dynamics):
        raise ValueError("`model` must have a network of our own: no dropout in published ones.")
    weights = [block.weights().second for pair in model.dynamics.pairs() for block in pair]
    before = [weight.data for weight in weights]
    try:
        for weight in weights:
            heard = torch.rand(weight.shape[1], generator=generator) >= DROPOUT
            weight.data = weight.data * (heard / (1 - DROPOUT)).to(weight)
        yield
    finally:
        for weight, whole in zip(weights, before, strict=True):
            weight.data = whole


def dropout_variance(model: WorldModel, window: Window) -> Tensor:
    """Spread between rollouts with dropout, same noise, over a network trained without.

    Dropout at inference alone: Loquercio et al. 2020 (arXiv:1907.06890), and "infer-dropout" in Mi
    et al. 2022 (arXiv:1910.04858), who find it a usable substitute where training had none.
    """
    samples = []
    for number in range(NUM_SAMPLES):
        own = Generator().manual_seed(other_seeds(window.inputs, number).seeds[0])
        with dropout(model, generator=own):
            samples.append(sampled(model, window.inputs))
    return spread(samples)


def own_noise(window: Window, number: int) -> RowNoise:
    """Noise of every rollout of a window, other than what the rollout was made from."""
    return RowNoise(other_seeds(window.inputs, number).seeds, window.imagined[:, :1])


def denoising_residual(model: WorldModel, window: Window) -> Tensor:
    """How far a frame moves when it is noised to a middle level and denoised again: one pass."""
    draw = own_noise(window, 1)

    def score(moment: ScoredFrame) -> Tensor:
        noisy = (1 - MID_LEVEL) * moment.latent + MID_LEVEL * draw()
        return (moment.denoise(noisy, MID_LEVEL) - moment.latent).abs()

    return rescore(model, window, score)


def estimates(moment: ScoredFrame, noise: Tensor) -> list[Tensor]:
    """The clean latents that a sampler of several steps believes in on its way from `noise`."""
    x, believed, levels = noise, [], Flow().levels(FEW_STEPS.num_steps)
    for level, following in pairwise(levels):
        clean = moment.denoise(x, level)
        believed.append(clean)
        x = clean + following / level * (x - clean)
    return believed


def flow_instability(model: WorldModel, window: Window) -> Tensor:
    """Mean change of the estimated clean latent from one step of a sampler to the next."""
    draw = own_noise(window, 1)

    def score(moment: ScoredFrame) -> Tensor:
        return torch.stack(estimates(moment, draw())).diff(dim=0).abs().mean(0)

    return rescore(model, window, score)


def seed_variance(model: WorldModel, window: Window) -> Tensor:
    """Spread between denoisings of one frame from several noises, the past being the same."""
    draws = [own_noise(window, 1 + number) for number in range(NUM_SEEDS)]

    def score(moment: ScoredFrame) -> Tensor:
        return spread([estimates(moment, draw())[-1] for draw in draws])

    return rescore(model, window, score)


def round_trip(model: WorldModel, window: Window) -> Tensor:
    """How far a latent moves when it is decoded into pixels and encoded again."""
    flat = window.imagined.flatten(0, 2)
    again = [
        model.tokenizer.encode(to_model(model.decode(part.to(model.tokenizer.mean.device))))
        for part in torch.split(flat, 64)
    ]
    return (torch.cat(again).cpu() - flat).abs().view_as(window.imagined)


def change_since_last_real(model: WorldModel, window: Window) -> Tensor:
    """How far an imagined latent is from the last real one: from copying that frame."""
    return (window.imagined - window.inputs.context[:, -1:]).abs()


def base_rate(model: WorldModel, window: Window) -> Tensor:
    """The same for all: `ScoreConfidence` then states how often each horizon is right."""
    return torch.zeros_like(window.imagined)


def motion(rollout: EpisodeRollouts) -> Float[Tensor, "time view channel h w"]:
    """Change from the frame the model saw before each imagined one; zeros elsewhere."""
    first = torch.from_numpy(rollout.horizon == 1)[:, None, None, None, None]
    seen = torch.where(first, rollout.truth.roll(1, 0), rollout.imagined.roll(1, 0))
    return (rollout.imagined - seen).abs()


def divided_by_motion(scores: Scores, rollouts: Sequence[EpisodeRollouts]) -> Scores:
    """Scores over how much moves where they are."""
    return [
        score / (motion(rollout) + FLOOR) for score, rollout in zip(scores, rollouts, strict=True)
    ]


def over_motion(score: Score) -> Score:
    """A score divided by motion."""

    def divided(
        model: WorldModel,
        episodes: Sequence[LatentBatch],
        rollouts: Sequence[EpisodeRollouts],
        *,
        seed: int,
    ) -> Scores:
        return divided_by_motion(score(model, episodes, rollouts, seed=seed), rollouts)

    return divided


STEPS = FEW_STEPS.num_steps
SIGNALS = {
    "round trip": Baseline(by_window(round_trip), Cost(round_trips=1)),
    "flow instability": Baseline(by_window(flow_instability), Cost(passes=STEPS)),
    "seed variance": Baseline(by_window(seed_variance), Cost(passes=STEPS * NUM_SEEDS)),
}
"""Signals without labels (Hansen & Wang 2026, arXiv:2606.27326)."""

BASELINES: dict[str, Baseline] = {
    "base rate": Baseline(by_window(base_rate), Cost()),
    "copy of last frame": Baseline(by_window(change_since_last_real), Cost()),
    "denoising residual": Baseline(by_window(denoising_residual), Cost(passes=1)),
    "sampling variance": Baseline(by_window(sampling_variance), Cost(rollouts=NUM_SAMPLES - 1)),
    "sampling variance, 4 steps": Baseline(
        by_window(few_step_variance), Cost(passes=NUM_SAMPLES * passes_per_frame(FEW_STEPS))
    ),
    "MC dropout": Baseline(by_window(dropout_variance), Cost(rollouts=NUM_SAMPLES)),
    **SIGNALS,
    **{
        f"{name} / motion": replace(baseline, score=over_motion(baseline.score))
        for name, baseline in SIGNALS.items()
    },
}
"""Name -> baseline; a deep ensemble is made by `ensemble` from its members."""
