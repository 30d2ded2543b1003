"""Validation on held-out episodes: rollouts, and reliability of their confidence.

Validation does not affect training: rollouts use their own generators and averaged weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from worldmodel.episodes.clips import LatentBatch, collate_latents, full_view_mask
from worldmodel.episodes.imagine_clip import imagine_clip
from worldmodel.model import WorldModel
from worldmodel.monitors.reliability.counts import Reliability
from worldmodel.monitors.reliability.measures import expected_calibration_error
from worldmodel.networks.images import psnr_db

NUM_CLIPS = 8
"""Held-out clips to roll out."""
NUM_SHOWN = 4
"""Clips logged as images."""
HORIZONS = (1, 2, 4, 8, 16, 32)
"""Horizons of the logged metrics, in frames."""
SCORED = 8
"""Longest horizon of the error by which weights are chosen, in frames."""
EPSILONS = (0.25, 0.5, 1.0)
"""Error thresholds of the reliability diagram, in latent standard deviations."""


@dataclass(frozen=True)
class HeldOut:
    """Clips that the stage does not train on."""

    clips: LatentBatch
    start: int
    """Real frames before the first imagined one."""

    @property
    def horizons(self) -> list[int]:
        """`HORIZONS` that the clips are long enough for."""
        return [h for h in HORIZONS if h <= self.clips.latents.shape[1] - self.start]

    def at(self, horizon: int) -> tuple[Float[Tensor, "batch view channel h w"], Tensor]:
        """True latents at a horizon, and the mask [batch, view] of valid cameras."""
        frame = self.start + horizon - 1
        return self.clips.latents[:, frame], full_view_mask(self.clips)[:, frame]


def held_out(episodes: Sequence[LatentBatch], *, start: int, horizon: int) -> HeldOut | None:
    """First frames of the first episodes that are long enough; None if all are too short.

    Fewer than `NUM_CLIPS` episodes also give later clips, which do not overlap.
    """
    length = start + horizon
    longest = max((e.latents.shape[1] for e in episodes), default=0)
    starts = range(0, longest - length + 1, length)
    windows = [
        e.cut(length, start=first)
        for first in starts
        for e in episodes
        if e.latents.shape[1] >= first + length
    ]
    if not windows:
        return None
    clips = collate_latents(windows[:NUM_CLIPS])
    return HeldOut(replace(clips, latents=clips.latents.float()), start)


@torch.inference_mode()
def show_rollouts(model: WorldModel, seen: HeldOut, writer: Any, step: int) -> float:
    """Log the PSNR of imagined latents by horizon, and images of rollouts next to the truth.

    The PSNR in dB has a peak of one latent standard deviation: 10 lg(1 / mean squared error).
    Baseline: copying the last real frame. Returns the mean squared error over that of the baseline,
    averaged over the horizons up to `SCORED`.
    """
    imagined = roll_out(model, seen, epsilon=()).latents
    last, ratios = seen.clips.latents[:, seen.start - 1], []
    for horizon in seen.horizons:
        truth, view_mask = seen.at(horizon)
        errors = {}
        for name, guess in {"imagined": imagined[:, horizon - 1].cpu(), "copied": last}.items():
            errors[name] = (guess[view_mask] - truth[view_mask]).square().mean().item()
            figure = psnr_db(guess[view_mask], truth[view_mask], peak=1.0, floor=1e-12).item()
            writer.add_scalar(f"validation/psnr_db/{name}/horizon_{horizon:02d}", figure, step)
        if horizon <= SCORED:
            ratios.append(errors["imagined"] / max(errors["copied"], 1e-12))
    picture = side_by_side(model, seen, imagined)
    writer.add_image("validation/rollouts", picture, step, dataformats="HWC")
    return sum(ratios) / len(ratios)


@torch.inference_mode()
def show_reliability(model: WorldModel, seen: HeldOut, writer: Any, step: int) -> None:
    """Log the pooled expected calibration error by horizon, and a reliability diagram."""
    head = model.config.confidence
    epsilons = head.scales if head.head == "fixed_scale" else EPSILONS  # the head knows only these
    rolled = roll_out(model, seen, epsilon=epsilons)
    counts = Reliability(epsilons=epsilons, horizons=seen.horizons, keep_episodes=False)
    levels = torch.tensor(epsilons)
    for horizon in seen.horizons:
        truth, view_mask = seen.at(horizon)
        confidence = rolled.confidence[:, horizon - 1].cpu()[view_mask]
        error = (rolled.latents[:, horizon - 1].cpu() - truth).abs()[view_mask]
        counts.update(
            confidence.movedim(-1, 0).double().numpy(),
            (error[..., None] <= levels).movedim(-1, 0).numpy(),
            episode="held out",
            horizon=horizon,
        )
        ece = expected_calibration_error(counts.bins(horizon=horizon))
        writer.add_scalar(f"reliability/pooled_ece/horizon_{horizon:02d}", float(ece), step)
    writer.add_image("reliability/diagram", diagram(counts), step, dataformats="HWC")


def roll_out(model: WorldModel, seen: HeldOut, *, epsilon: Sequence[float]) -> Any:
    """Open-loop rollout of held-out clips with the model's own sampler and fixed seeds."""
    device = next(model.dynamics.parameters()).device
    clips = seen.clips.to(device)
    return imagine_clip(model, clips, seen.start, epsilon=epsilon)


def side_by_side(
    model: WorldModel, seen: HeldOut, imagined: Float[Tensor, "batch time view channel h w"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Image with two rows per clip, truth above imagination, and one column per horizon.

    Both are decoded from latents, so differences come from the dynamics. Cameras are stacked; a
    white line ends each clip.
    """
    ahead = [horizon - 1 for horizon in seen.horizons]
    truth = seen.clips.latents[:NUM_SHOWN, seen.start :][:, ahead]
    rows = torch.stack((truth.to(imagined), imagined[:NUM_SHOWN, ahead]), dim=1)
    pixels = rearrange(model.decode(rows), "n row t v h w c -> n c (row v h) (t w)")
    separated = F.pad(pixels, (0, 0, 0, 2), value=255)
    return rearrange(separated, "n c h w -> (n h) w c").cpu().numpy()


def diagram(counts: Reliability) -> UInt8[np.ndarray, "height width 3"]:
    """Reliability diagram: observed frequency over confidence, one line per horizon."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), dpi=100, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.add_subplot(
        xlabel="confidence", ylabel="observed frequency", xlim=(0, 1), ylim=(0, 1)
    )
    axes.plot((0, 1), (0, 1), color="0.6", linestyle="--")
    for horizon in counts.horizons:
        bins = counts.bins(horizon=horizon).pooled()
        filled = bins.count > 0
        confidence, frequency = (
            sums[filled] / bins.count[filled] for sums in (bins.confidence, bins.correct)
        )
        axes.plot(confidence, frequency, marker="o", markersize=3, label=f"{horizon} ahead")
    axes.legend(title="frames", loc="upper left", fontsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
