"""Training of the compositor on the model's own rollouts and on true latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils.data import Dataset

from worldmodel.episodes.clips import LatentBatch
from worldmodel.episodes.imagine_clip import imagine_clip
from worldmodel.model import WorldModel
from worldmodel.networks.compositing import LastReal, compose
from worldmodel.networks.compositor import Compositor
from worldmodel.networks.images import psnr_db, to_model
from worldmodel.networks.tokenizer import Tokenizer
from worldmodel.training.randomness import StepRandomness

STEPS = 3
"""Frames of each window in a training step."""
TRUE_SHARE = 0.25
"""Share of windows with the true latents: a perfect model's pictures, at every distance."""
FLOOR = 1e-4
"""Added to a picture's mean squared error before the logarithm: 46 dB for pixels in [-1, 1]."""


@dataclass(frozen=True)
class PictureBatch:
    """Rollouts of single views: what was imagined, and what the camera saw."""

    latents: Float[Tensor, "batch time channel h w"]
    """Imagined latents of the frames after the last real one."""
    true_latents: Float[Tensor, "batch time channel h w"]
    frames: UInt8[Tensor, "batch time height width 3"]
    last_latents: Float[Tensor, "batch channel h w"]
    last_frames: UInt8[Tensor, "batch height width 3"]

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, items: slice) -> PictureBatch:
        return PictureBatch(*(value[items] for value in vars(self).values()))

    def to(self, device: torch.device) -> PictureBatch:
        """Move the rollouts to another device."""
        return PictureBatch(*(value.to(device) for value in vars(self).values()))


class PictureClips(Dataset[PictureBatch]):
    """Rollouts of single views in memory, latents in half precision.

    The first half of the indices are nominal rollouts, the second half corrupted ones, however many
    there are of each: both are drawn equally often. Without corrupted ones, all are nominal.
    """

    def __init__(self, nominal: Sequence[PictureBatch], corrupted: Sequence[PictureBatch]) -> None:
        self.groups = [group for group in (nominal, corrupted) if group]
        self.longest = max((len(group) for group in self.groups), default=0)

    def __len__(self) -> int:
        return self.longest * len(self.groups)

    def __getitem__(self, index: int) -> PictureBatch:
        group = self.groups[index // self.longest]
        return group[(index % self.longest) % len(group)]

    @staticmethod
    def collate(items: list[PictureBatch]) -> PictureBatch:
        """Concatenate rollouts to one batch."""
        columns = zip(*(vars(item).values() for item in items), strict=True)
        return PictureBatch(*(torch.cat(column) for column in columns))


@torch.no_grad()
def imagined_views(
    model: WorldModel,
    episode: LatentBatch,
    frames: UInt8[Tensor, "time view height width 3"],
    *,
    horizon: int,
    longest_start: int,
    rng: np.random.Generator,
) -> Iterator[PictureBatch]:
    """One rollout per view of an episode, from a random frame and number of real frames.

    Frames are those of the latents, at the model's size. Left out: an episode with too few of them,
    and a view that is missing at the last real frame or later.
    """
    start = int(rng.integers(1, longest_start + 1))
    room = len(frames) - start - horizon
    if room < 0:
        return
    clip = episode.cut(start + horizon, start=(first := int(rng.integers(room + 1))))
    view_mask, device = clip.view_valid, model.tokenizer.mean.device
    clip = clip.to(device)
    seeds = [int(rng.integers(2**31))]
    imagined = imagine_clip(model, clip, start, seeds=seeds, epsilon=()).latents[0]
    truth, seen = clip.latents[0], frames[first : first + start + horizon]
    for view in range(frames.shape[1]):
        if view_mask is not None and not view_mask[0, start - 1 :, view].all():
            continue
        yield PictureBatch(
            latents=imagined[None, :, view].half().cpu(),
            true_latents=truth[None, start:, view].half().cpu(),
            frames=seen[None, start:, view].clone(),
            last_latents=truth[None, start - 1, view].half().cpu(),
            last_frames=seen[None, start - 1, view].clone(),
        )


class CompositorObjective(nn.Module):
    """Mean logarithm of the squared error of composed pictures; the other networks stay frozen.

    Its mean is the mean PSNR, up to a constant: pictures of scenes that the model knows and of
    scenes that it does not know weigh the same.
    """

    def __init__(self, compositor: Compositor, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.compositor = compositor
        # Hide the tokenizer in a function: outside the module tree it is not copied, trained,
        # averaged or checkpointed.
        frozen = tokenizer.eval()
        self.tokenizer: Callable[[], Tokenizer] = lambda: frozen

    def forward(
        self, batch: PictureBatch, randomness: StepRandomness
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss at `STEPS` random horizons; logs the PSNR of composed and of decoded pictures."""
        length = batch.latents.shape[1]
        steps = [randomness.random.randrange(length) for _ in range(STEPS)]
        is_true = randomness.uniform(len(batch)) < TRUE_SHARE
        latents = torch.where(
            is_true[:, None, None, None, None],
            batch.true_latents[:, steps],
            batch.latents[:, steps],
        )
        # Deployed pictures are float32, so these are too, even when training in bf16.
        with torch.autocast(latents.device.type, enabled=False):
            shown, decoded = self._pictures(batch, latents.float())
        target = to_model(batch.frames[:, steps]).flatten(0, 1)
        error = (shown - target).square().mean((1, 2, 3))
        figures = {
            f"psnr_db/{name}": psnr_db(picture.detach(), target, peak=2.0, dim=(1, 2, 3)).mean()
            for name, picture in (("composed", shown), ("decoded", decoded))
        }
        return (error + FLOOR).log().mean(), figures

    def _pictures(
        self, batch: PictureBatch, latents: Float[Tensor, "batch step channel h w"]
    ) -> tuple[Tensor, Tensor]:
        """Composed and decoded pictures, one per row and step."""
        tokenizer, codes = self.tokenizer().to(latents.device), batch.last_latents.float()
        flat = rearrange(latents, "b t c h w -> (b t) c h w")
        with torch.no_grad():
            both = tokenizer.decode(torch.cat((flat, codes)))
        decoded, last_decoded = both[: len(flat)], both[len(flat) :]
        rows = repeat(
            torch.arange(len(codes), device=flat.device), "b -> (b t)", t=latents.shape[1]
        )
        last = LastReal(to_model(batch.last_frames), codes, last_decoded).rows(rows)
        return compose(decoded, last, self.compositor(flat, decoded, last)), decoded
