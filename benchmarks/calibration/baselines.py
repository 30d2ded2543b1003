"""Baselines of the confidence head: anomaly scores of imagined subpatches.

Each scores finished rollouts of one model and gives every subpatch an anomaly score, higher is more
surprising. `ScoreConfidence` maps scores to probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from benchmarks.calibration.rescore import (
    Score,
    ScoredFrame,
    Scores,
    SegmentBatch,
    by_segment,
    rescore,
)
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
"""Samples of a rollout, including the scored one, or passes with dropout."""
DROPOUT = 0.1
"""Dropout rate of the hidden units of every MLP."""
FEW_STEPS = Sampling(num_steps=4)
"""Sampler whose samples differ; one-step samples (posterior means) hardly do."""
NUM_SEEDS = 4
"""Denoisings per frame for the seed variance."""
MID_LEVEL = 0.5
"""Noise level from which a frame is denoised again."""
FLOOR = 0.1
"""Offset added to motion before division, in latent standard deviations."""
SEED_STRIDE = 1_000_003
"""Distance between the seeds of consecutive samples; sample 0 is the scored rollout."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Extra cost of a score if it is computed during the rollout."""

    rollouts: int = 0
    """Extra rollouts with the checkpoint's sampler."""
    passes: int = 0
    """Extra passes of the network per frame."""
    round_trips: int = 0
    """Frames decoded and encoded per frame."""

    def relative(self, sampling: Sampling) -> float:
        """Total network passes relative to those of the scored rollout.

        >>> Cost(rollouts=2).relative(Sampling()), Cost(passes=1).relative(Sampling())
        (3.0, 1.5)
        """
        return 1 + self.rollouts + self.passes / passes_per_frame(sampling)


def passes_per_frame(sampling: Sampling) -> int:
    """Network passes per frame of a rollout: sampling, and filling the key/value cache.

    >>> passes_per_frame(Sampling()), passes_per_frame(Sampling(num_steps=4, method="heun"))
    (2, 8)
    """
    steps = sampling.num_steps
    evaluations = 2 * steps - 1 if sampling.method == "heun" else steps
    return evaluations * (1 if sampling.guidance == 1 else 2) + 1


@dataclass(frozen=True)
class Baseline:
    """Anomaly score and its cost."""

    score: Score
    cost: Cost


def sampled(model: WorldModel, inputs: RolloutInputs, sampling: Sampling | None = None) -> Tensor:
    """Latents of rollouts, without confidence."""
    no_epsilon = inputs.context.new_empty(0)
    sampling = sampling or model.sampling
    return imagine(model.dynamics, None, inputs, sampling=sampling, epsilon=no_epsilon).latents


def other_seeds(inputs: RolloutInputs, number: int) -> RolloutInputs:
    """Inputs with the seeds of another sample; number 0 keeps the seeds."""
    return replace(inputs, seeds=[seed + number * SEED_STRIDE for seed in inputs.seeds])


def spread(samples: Sequence[Tensor]) -> Tensor:
    """Standard deviation over samples of the same shape."""
    return torch.stack(list(samples)).std(0)


def ensemble(members: Sequence[WorldModel]) -> Baseline:
    """Spread between the scored rollout and those of other networks with the same seeds.

    Deep ensembles (Lakshminarayanan et al. 2017, arXiv:1612.01474): `members`, without the scored
    model, were trained on the same latents from other initial weights.
    """

    def score(model: WorldModel, segments: SegmentBatch) -> Tensor:
        for member in members:
            if latents_name(member) != latents_name(model):
                raise ValueError(
                    "`members` must have the tokenizer, cameras and rate of the scored "
                    "model; train them with recipes/train_ensemble.py."
                )
        return spread(
            [segments.imagined, *(sampled(member, segments.inputs) for member in members)]
        )

    return Baseline(by_segment(score), Cost(rollouts=len(members)))


def sampling_variance(model: WorldModel, segments: SegmentBatch) -> Tensor:
    """Spread between samples of the checkpoint's own sampler, including the scored one."""
    others = range(1, NUM_SAMPLES)
    return spread(
        [segments.imagined, *(sampled(model, other_seeds(segments.inputs, k)) for k in others)]
    )


def few_step_variance(model: WorldModel, segments: SegmentBatch) -> Tensor:
    """Spread between samples of a multi-step sampler."""
    numbers = range(1, NUM_SAMPLES + 1)
    return spread([sampled(model, other_seeds(segments.inputs, k), FEW_STEPS) for k in numbers])


@contextmanager
def dropout(model: WorldModel, *, generator: Generator) -> Iterator[None]:
    """Drop a share `DROPOUT` of the hidden units of every MLP inside the block.

    Every frame, position and rollout drops the same units, as Gal & Ghahramani 2016
    (arXiv:1512.05287) do in recurrent networks. The outgoing weights of dropped units are set to
    zero, because blocks call no module that a hook could attach to. The weights are restored bit
    for bit on exit.
    """
    if not isinstance(model.dynamics, Dynamics):
        raise ValueError(
            "`model` must have a `Dynamics` network: published networks have no dropout."
        )
    weights = [block.weights().second for pair in model.dynamics.pairs() for block in pair]
    before = [weight.data for weight in weights]
    try:
        for weight in weights:
            kept = torch.rand(weight.shape[1], generator=generator) >= DROPOUT
            weight.data = weight.data * (kept / (1 - DROPOUT)).to(weight)
        yield
    finally:
        for weight, original in zip(weights, before, strict=True):
            weight.data = original


def dropout_variance(model: WorldModel, segments: SegmentBatch) -> Tensor:
    """Spread between rollouts with the same noise and different dropout masks.

    Dropout only at inference: Loquercio et al. 2020 (arXiv:1907.06890), and "infer-dropout" in Mi
    et al. 2022 (arXiv:1910.04858), who find it usable for networks trained without dropout.
    """
    samples = []
    for number in range(NUM_SAMPLES):
        generator = Generator().manual_seed(other_seeds(segments.inputs, number).seeds[0])
        with dropout(model, generator=generator):
            samples.append(sampled(model, segments.inputs))
    return spread(samples)


def fresh_noise(segments: SegmentBatch, number: int) -> RowNoise:
    """Noise of every rollout that is independent of the rollout's own noise."""
    return RowNoise(other_seeds(segments.inputs, number).seeds, segments.imagined[:, :1])


def denoising_residual(model: WorldModel, segments: SegmentBatch) -> Tensor:
    """Change of a frame after noising it to `MID_LEVEL` and denoising it in one pass."""
    draw = fresh_noise(segments, 1)

    def score(frame: ScoredFrame) -> Tensor:
        noisy = (1 - MID_LEVEL) * frame.latent + MID_LEVEL * draw()
        return (frame.denoise(noisy, MID_LEVEL) - frame.latent).abs()

    return rescore(model, segments, score)


def estimates(frame: ScoredFrame, noise: Tensor) -> list[Tensor]:
    """Estimates of the clean latent along a multi-step sampler that starts from `noise`."""
    x, clean_latents, levels = noise, [], Flow().levels(FEW_STEPS.num_steps)
    for level, next_level in pairwise(levels):
        clean = frame.denoise(x, level)
        clean_latents.append(clean)
        x = clean + next_level / level * (x - clean)
    return clean_latents


def flow_instability(model: WorldModel, segments: SegmentBatch) -> Tensor:
    """Mean change of the clean latent estimate between sampler steps."""
    draw = fresh_noise(segments, 1)

    def score(frame: ScoredFrame) -> Tensor:
        return torch.stack(estimates(frame, draw())).diff(dim=0).abs().mean(0)

    return rescore(model, segments, score)


def seed_variance(model: WorldModel, segments: SegmentBatch) -> Tensor:
    """Spread between denoisings of one frame from several noises, given the same past."""
    draws = [fresh_noise(segments, 1 + number) for number in range(NUM_SEEDS)]

    def score(frame: ScoredFrame) -> Tensor:
        return spread([estimates(frame, draw())[-1] for draw in draws])

    return rescore(model, segments, score)


def round_trip(model: WorldModel, segments: SegmentBatch) -> Tensor:
    """Change of a latent after decoding it to pixels and encoding it again."""
    flat = segments.imagined.flatten(0, 2)
    encoded = [
        model.tokenizer.encode(to_model(model.decode(part.to(model.tokenizer.mean.device))))
        for part in torch.split(flat, 64)
    ]
    return (torch.cat(encoded).cpu() - flat).abs().view_as(segments.imagined)


def change_since_last_real(model: WorldModel, segments: SegmentBatch) -> Tensor:
    """Distance of an imagined latent from the last real one."""
    return (segments.imagined - segments.inputs.context[:, -1:]).abs()


def base_rate(model: WorldModel, segments: SegmentBatch) -> Tensor:
    """Constant score: `ScoreConfidence` then predicts the base rate per horizon."""
    return torch.zeros_like(segments.imagined)


def motion(rollout: EpisodeRollouts) -> Float[Tensor, "time view channel h w"]:
    """Change of each imagined frame from the frame before it; zeros elsewhere."""
    first = torch.from_numpy(rollout.horizon == 1)[:, None, None, None, None]
    previous = torch.where(first, rollout.truth.roll(1, 0), rollout.imagined.roll(1, 0))
    return (rollout.imagined - previous).abs()


def divided_by_motion(scores: Scores, rollouts: Sequence[EpisodeRollouts]) -> Scores:
    """Scores divided by local motion."""
    return [
        score / (motion(rollout) + FLOOR) for score, rollout in zip(scores, rollouts, strict=True)
    ]


def over_motion(score: Score) -> Score:
    """Turn a score into one divided by motion."""

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
    "round trip": Baseline(by_segment(round_trip), Cost(round_trips=1)),
    "flow instability": Baseline(by_segment(flow_instability), Cost(passes=STEPS)),
    "seed variance": Baseline(by_segment(seed_variance), Cost(passes=STEPS * NUM_SEEDS)),
}
"""Signals without labels (Hansen & Wang 2026, arXiv:2606.27326)."""

BASELINES: dict[str, Baseline] = {
    "base rate": Baseline(by_segment(base_rate), Cost()),
    "copy of last frame": Baseline(by_segment(change_since_last_real), Cost()),
    "denoising residual": Baseline(by_segment(denoising_residual), Cost(passes=1)),
    "sampling variance": Baseline(by_segment(sampling_variance), Cost(rollouts=NUM_SAMPLES - 1)),
    "sampling variance, 4 steps": Baseline(
        by_segment(few_step_variance), Cost(passes=NUM_SAMPLES * passes_per_frame(FEW_STEPS))
    ),
    "MC dropout": Baseline(by_segment(dropout_variance), Cost(rollouts=NUM_SAMPLES)),
    **SIGNALS,
    **{
        f"{name} / motion": replace(baseline, score=over_motion(baseline.score))
        for name, baseline in SIGNALS.items()
    },
}
"""Name -> baseline; `ensemble` makes the deep ensemble from its members."""
