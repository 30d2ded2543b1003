"""What training shows of held-out episodes: rollouts, and how far the confidence in them holds.

Nothing here touches the run: rollouts draw from generators of their own and read averaged weights.
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

from worldmodel.episodes.clips import LatentBatch, collate_latents, views_there
from worldmodel.model import WorldModel
from worldmodel.monitors.reliability.counts import Reliability
from worldmodel.monitors.reliability.measures import expected_calibration_error

NUM_CLIPS = 8
"""Held-out clips that are imagined."""
NUM_SHOWN = 4
"""Clips among them that are shown as pictures."""
HORIZONS = (1, 2, 4, 8, 16, 32)
"""Frames ahead that figures are given for."""
EPSILONS = (0.25, 0.5, 1.0)
"""Errors, in latent standard deviations, that reliability is counted at."""


@dataclass(frozen=True)
class HeldOut:
    """Clips that the stage does not learn from."""

    clips: LatentBatch
    start: int
    """Real frames before the first imagined one."""

    @property
    def horizons(self) -> list[int]:
        """Those of `HORIZONS` that the clips reach."""
        return [h for h in HORIZONS if h <= self.clips.latents.shape[1] - self.start]

    def at(self, horizon: int) -> tuple[Float[Tensor, "batch view channel h w"], Tensor]:
        """The true latents so many frames ahead, and which cameras [batch, view] are there."""
        frame = self.start + horizon - 1
        return self.clips.latents[:, frame], views_there(self.clips)[:, frame]


def held_out(episodes: Sequence[LatentBatch], *, start: int, horizon: int) -> HeldOut | None:
    """The beginnings of the first episodes that are long enough; None where there is none."""
    long = [e.cut(start + horizon) for e in episodes if e.latents.shape[1] >= start + horizon]
    if not long:
        return None
    clips = collate_latents(long[:NUM_CLIPS])
    return HeldOut(replace(clips, latents=clips.latents.float()), start)


@torch.inference_mode()
def show_rollouts(model: WorldModel, seen: HeldOut, writer: Any, step: int) -> None:
    """Write the error of imagined latents by horizon, and pictures of rollouts beside the truth.

    The error is a peak signal-to-noise ratio in dB whose peak is one latent standard deviation:
    10 lg(1 / mean squared error). Beside it stands that of copying the last real frame.
    """
    imagined = roll_out(model, seen, epsilon=()).latents
    last = seen.clips.latents[:, seen.start - 1]
    for horizon in seen.horizons:
        truth, view_mask = seen.at(horizon)
        for name, guess in {"imagined": imagined[:, horizon - 1].cpu(), "copied": last}.items():
            figure = psnr_db(guess[view_mask], truth[view_mask])
            writer.add_scalar(f"validation/psnr_db/{name}/horizon_{horizon:02d}", figure, step)
    picture = side_by_side(model, seen, imagined)
    writer.add_image("validation/rollouts", picture, step, dataformats="HWC")


@torch.inference_mode()
def show_reliability(model: WorldModel, seen: HeldOut, writer: Any, step: int) -> None:
    """Write the pooled calibration error by horizon, and a reliability diagram."""
    head = model.config.confidence
    epsilons = head.scales if head.head == "fixed_scale" else EPSILONS  # it answers no others
    rolled = roll_out(model, seen, epsilon=epsilons)
    counts = Reliability(epsilons=epsilons, horizons=seen.horizons, keep_episodes=False)
    levels = torch.tensor(epsilons)
    for horizon in seen.horizons:
        truth, view_mask = seen.at(horizon)
        stated = rolled.confidence[:, horizon - 1].cpu()[view_mask]
        error = (rolled.latents[:, horizon - 1].cpu() - truth).abs()[view_mask]
        counts.update(
            stated.movedim(-1, 0).double().numpy(),
            (error[..., None] <= levels).movedim(-1, 0).numpy(),
            episode="held out",
            horizon=horizon,
        )
        ece = expected_calibration_error(counts.bins(horizon=horizon))
        writer.add_scalar(f"reliability/pooled_ece/horizon_{horizon:02d}", float(ece), step)
    writer.add_image("reliability/diagram", diagram(counts), step, dataformats="HWC")


def roll_out(model: WorldModel, seen: HeldOut, *, epsilon: Sequence[float]) -> Any:
    """Imagine the held-out clips with the model's own sampler, always with the same seeds."""
    device = next(model.dynamics.parameters()).device
    clips = seen.clips.to(device)
    return model.imagine(
        clips.latents[:, : seen.start],
        clips.actions[:, :-1],
        action_valid=clips.action_valid[:, :-1],
        epsilon=epsilon,
        view_valid=None if clips.view_valid is None else clips.view_valid[:, : seen.start],
    )


def psnr_db(guess: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio of whitened latents, for a peak of one standard deviation.

    >>> psnr_db(torch.zeros(4), torch.full((4,), 0.1))
    20.0
    """
    return round(-10 * (guess - truth).square().mean().clamp_min(1e-12).log10().item(), 4)


def side_by_side(
    model: WorldModel, seen: HeldOut, imagined: Float[Tensor, "batch time view channel h w"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Two rows per clip, the truth above what was imagined; horizons from left to right.

    Both are decoded from latents, so that a difference is one of dynamics. Cameras are stacked, and
    a white line ends each clip.
    """
    ahead = [horizon - 1 for horizon in seen.horizons]
    truth = seen.clips.latents[:NUM_SHOWN, seen.start :][:, ahead]
    rows = torch.stack((truth.to(imagined), imagined[:NUM_SHOWN, ahead]), dim=1)
    pixels = rearrange(model.decode(rows), "n row t v h w c -> n c (row v h) (t w)")
    lined = F.pad(pixels, (0, 0, 0, 2), value=255)
    return rearrange(lined, "n c h w -> (n h) w c").cpu().numpy()


def diagram(counts: Reliability) -> UInt8[np.ndarray, "height width 3"]:
    """How often forecasts came true against how sure they were, one line per horizon."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), dpi=100, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.add_subplot(
        xlabel="stated confidence", ylabel="share that came true", xlim=(0, 1), ylim=(0, 1)
    )
    axes.plot((0, 1), (0, 1), color="0.6", linestyle="--")
    for horizon in counts.horizons:
        bins = counts.bins(horizon=horizon).pooled()
        filled = bins.count > 0
        sure, true = (sums[filled] / bins.count[filled] for sums in (bins.confidence, bins.correct))
        axes.plot(sure, true, marker="o", markersize=3, label=f"{horizon} ahead")
    axes.legend(title="frames", loc="upper left", fontsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
