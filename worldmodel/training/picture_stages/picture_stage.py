"""Training stage of the confidence in pictures: evidence from rollouts, then a small network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from worldmodel.episodes.episode import Episode
from worldmodel.episodes.imagine_clip import imagine_clip
from worldmodel.episodes.load import load_episode
from worldmodel.episodes.picture_evidence import NAMES, imagined_pictures, picture_evidence
from worldmodel.model import WorldModel
from worldmodel.networks.pixel_confidence import (
    PixelConfidence,
    PixelConfidenceConfig,
    patch_error,
)
from worldmodel.training.picture_stages.compositor_stage import (
    MAX_HORIZON,
    corrupted_copy,
)
from worldmodel.training.randomness import StepRandomness
from worldmodel.training.run import Run

MAX_EPISODES = 90
"""Episodes of the training data."""
COPIES = 3
"""Corrupted copies of each; without them, confidence is wrong in scenes that look strange."""
ROLLOUTS = 2
"""Rollouts of each episode and of each copy."""


@dataclass(frozen=True)
class PatchBatch:
    """Evidence about patches of pictures, and their errors in grey levels."""

    evidence: Float[Tensor, "batch patch inputs"]
    error: Float[Tensor, "batch patch"]

    def __len__(self) -> int:
        return len(self.error)

    @property
    def shape(self) -> tuple[int, int]:
        """Pictures, and frames of each: an item is one picture."""
        return len(self), 1

    def __getitem__(self, items: slice) -> PatchBatch:
        return PatchBatch(self.evidence[items], self.error[items])

    def to(self, device: torch.device) -> PatchBatch:
        """Move the patches to another device."""
        return PatchBatch(self.evidence.to(device), self.error.to(device))


class Patches(Dataset[PatchBatch]):
    """Imagined pictures as items, each with all its patches."""

    def __init__(self, pictures: Sequence[PatchBatch]) -> None:
        self.all = self.collate(list(pictures))

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, index: int) -> PatchBatch:
        return self.all[index : index + 1]

    @staticmethod
    def collate(items: list[PatchBatch]) -> PatchBatch:
        """Concatenate pictures to one batch."""
        return PatchBatch(
            torch.cat([item.evidence for item in items]), torch.cat([item.error for item in items])
        )


class PictureConfidenceObjective(nn.Module):
    """Logarithmic score of the stated distribution of each patch's error."""

    def __init__(self, head: PixelConfidence) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, batch: PatchBatch, randomness: StepRandomness
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean score over patches; logs the mean error in grey levels."""
        with torch.autocast(batch.error.device.type, enabled=False):
            loss = self.head.loss(batch.evidence, batch.error)
        return loss, {"mean_error": batch.error.mean()}


def train_picture_confidence(run: Run, model: WorldModel) -> bool:
    """Train the confidence in pictures on rollouts over episodes that the dynamics never saw."""
    found = list(_pictures(run, model, run.split.confidence[:MAX_EPISODES]))
    if not found:
        return False
    pictures, seed = Patches(found), run.preset.picture_loop.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = PixelConfidence(PixelConfidenceConfig(inputs=len(NAMES)))
    head.fit_inputs(pictures.all.evidence.flatten(0, 1))
    objective = PictureConfidenceObjective(head)
    run.fit(objective, pictures, run.preset.picture_loop, name="pictures")
    model.set_picture_confidence(head)
    return True


def _pictures(run: Run, model: WorldModel, names: Sequence[str]) -> Iterator[PatchBatch]:
    """Evidence and errors of rollouts over episodes and over their corrupted copies."""
    preset = run.preset
    horizon, longest_start = min(MAX_HORIZON, preset.horizon), preset.longest_start
    for number, name in enumerate(names):
        run.stop.check("while pictures for their confidence were imagined")
        nominal = load_episode(model, run.store.episode(name), model.config.cameras)
        for copy in range(COPIES + 1):
            rng = np.random.default_rng([preset.picture_loop.seed, number, copy])
            episode = corrupted_copy(model, nominal, rng) if copy else nominal
            for _ in range(ROLLOUTS):
                start = int(rng.integers(1, longest_start + 1))
                room = len(episode.frames) - start - horizon
                if room >= 0:
                    first = int(rng.integers(room + 1))
                    yield from rollout_patches(model, episode, first, start, horizon)


@torch.no_grad()
def rollout_patches(
    model: WorldModel, episode: Episode, first: int, start: int, horizon: int
) -> Iterator[PatchBatch]:
    """Patches of one rollout, from the `start` real frames that begin at frame `first`.

    Left out: views that are missing in any of its frames.
    """
    clip = episode.batch.cut(start + horizon, start=first)
    frames = episode.frames[first : first + start + horizon]
    mask, latents = clip.view_valid, clip.latents.float()
    imagined = imagine_clip(model, clip, start, epsilon=()).latents[0].cpu()
    seen = None if mask is None else mask[0, start - 1]
    shown = model.show(imagined, frames[start - 1], last_latents=latents[0, start - 1], seen=seen)
    rollout = imagined_pictures(clip, frames[:start], latents=imagined, shown=shown.cpu())
    evidence = picture_evidence(model, rollout).flatten(2, 3)
    error = patch_error(shown.cpu(), frames[start:]).flatten(2, 3)
    for view in range(frames.shape[1]):
        if mask is None or mask[0, :, view].all():
            yield PatchBatch(evidence[:, view].clone(), error[:, view].clone())
