"""Do imagined frames depend on the actions, and on the right ones?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.episodes.clips import LatentBatch
from worldmodel.episodes.imagine_clip import imagine_clip
from worldmodel.model import WorldModel

START, HORIZON = 4, 8
"""Real frames and imagined frames of a comparison."""
OFFSETS = range(-3, 4)
"""Shifts of the actions, in frames."""
COMPONENTS = 32
"""Principal components of frames and of changes that actions are read from."""
READABLE = 0.2
"""Least R² on true pairs of a number of the action that counts."""
FIRST = max(OFFSETS)
"""First frame of the clips, so that shifted actions exist."""


def long_enough(episodes: Sequence[LatentBatch]) -> list[LatentBatch]:
    """Episodes with a clip of `START` + `HORIZON` frames and its shifted actions."""
    needed = FIRST + START + HORIZON + max(OFFSETS)
    return [episode for episode in episodes if episode.latents.shape[1] >= needed]


@torch.inference_mode()
def latent_error(
    model: WorldModel, episodes: Sequence[LatentBatch], *, offset: int = 0
) -> Float[np.ndarray, " episode"]:
    """Root mean square error of each episode's clip, with the actions `offset` frames later."""
    errors = []
    for episode in episodes:
        clip = episode.cut(START + HORIZON, start=FIRST)
        moved = episode.cut(START + HORIZON, start=FIRST + offset)
        mask = clip.view_valid
        given = replace(clip, actions=moved.actions, action_valid=moved.action_valid)
        imagined = imagine_clip(model, given, START, epsilon=()).latents.cpu()
        gap = (imagined - clip.latents[:, START:].float()).square()
        if mask is not None:
            gap = gap[mask[:, START:]]
        errors.append(float(gap.mean().sqrt()))
    return np.array(errors)


def mirrored(batch: LatentBatch) -> LatentBatch:
    """Displacements and turns the other way; the gripper is kept."""
    actions = batch.actions.clone()
    width = min(6, actions.shape[-1])
    actions[..., :width] *= -1
    return replace(batch, actions=actions)


def zeroed(batch: LatentBatch) -> LatentBatch:
    """Actions of zeros."""
    return replace(batch, actions=torch.zeros_like(batch.actions))


def shuffled(episodes: Sequence[LatentBatch]) -> list[LatentBatch]:
    """Every episode with the actions of the next one, cut to the shorter of both."""
    pairs = zip(episodes, [*episodes[1:], *episodes[:1]], strict=True)
    found = []
    for own, other in pairs:
        count = min(own.latents.shape[1], other.latents.shape[1])
        given = other.cut(count)
        found.append(
            replace(own.cut(count), actions=given.actions, action_valid=given.action_valid)
        )
    return found


def swapped_in_scene(episodes: Sequence[LatentBatch]) -> tuple[list[int], list[LatentBatch]]:
    """Episodes that begin with the same frame as another, with the actions of the other.

    Returns:
        Indices of the episodes, and the episodes with swapped actions.
    """
    groups: dict[bytes, list[int]] = {}
    for index, episode in enumerate(episodes):
        groups.setdefault(episode.latents[0, 0].numpy().tobytes(), []).append(index)
    chosen, changed = [], []
    for members in groups.values():
        for own, other in zip(members, [*members[1:], *members[:1]], strict=True):
            if own != other:
                chosen.append(own)
                changed += shuffled([episodes[own], episodes[other]])[:1]
    return chosen, changed


def relative_increases(
    model: WorldModel, episodes: Sequence[LatentBatch]
) -> dict[str, Float[np.ndarray, " episode"]]:
    """Wrong actions -> relative increase of each episode's error."""
    usable = long_enough(episodes)
    if len(usable) < 2:
        return {}
    true = latent_error(model, usable)
    changes: dict[str, Callable[[], list[LatentBatch]]] = {
        "shuffled": lambda: shuffled(usable),
        "zeroed": lambda: [zeroed(episode) for episode in usable],
        "mirrored": lambda: [mirrored(episode) for episode in usable],
    }
    found = {}
    for name, change in changes.items():
        changed = change()
        kept = [i for i, episode in enumerate(changed) if long_enough([episode])]
        wrong = latent_error(model, [changed[i] for i in kept])
        found[name] = wrong / true[kept] - 1
    chosen, changed = swapped_in_scene(usable)
    if len(chosen) > 1:
        found["swapped"] = latent_error(model, changed) / true[chosen] - 1
    return found


def offset_errors(model: WorldModel, episodes: Sequence[LatentBatch]) -> dict[str, float]:
    """Offset of the actions -> mean error, over the same episodes and frames."""
    usable = long_enough(episodes)
    if not usable:
        return {}
    return {str(k): float(latent_error(model, usable, offset=k).mean()) for k in OFFSETS}


def inverse_dynamics(model: WorldModel, episodes: Sequence[LatentBatch]) -> dict[str, float]:
    """How well actions are read back from pairs of latent frames: R², true and imagined.

    A small network learns it from true pairs of every second episode and is measured on the others:
    on true pairs, and on imagined ones. The mean is over the numbers of an action of which it
    explains at least `READABLE` of the variance in true pairs; empty if there are none.
    """
    usable = long_enough(episodes)
    if len(usable) < 4:
        return {}
    reader = ActionReader([_pairs(e.latents[0].float(), e, 0) for e in usable[::2]])
    held = [episode.cut(START + HORIZON, start=FIRST) for episode in usable[1::2]]
    real = reader.explained([_pairs(clip.latents[0].float(), clip, START) for clip in held])
    imagined = reader.explained([_pairs(_imagined(model, clip), clip, START) for clip in held])
    readable = real >= READABLE
    if not readable.any():
        return {}
    return {"real": float(real[readable].mean()), "imagined": float(imagined[readable].mean())}


Pairs = tuple[Float[Tensor, "pair inputs"], Float[Tensor, "pair inputs"], Float[Tensor, "pair a"]]
"""Earlier frame, change to the later one, and the action between them."""


class ActionReader:
    """Network that reads the action between two frames from their principal components."""

    def __init__(self, pairs: Sequence[Pairs]) -> None:
        before, change, actions = (torch.cat(column) for column in zip(*pairs, strict=True))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._axes = [
                torch.pca_lowrank(x, q=min(COMPONENTS, *x.shape), niter=4)[2]
                for x in (before, change)
            ]
            inputs = self._project(before, change)
            self._mean, self._std = inputs.mean(0), inputs.std(0).clamp_min(1e-6)
            self._centre, self._scale = actions.mean(0), actions.std(0).clamp_min(1e-4)
            self._net = nn.Sequential(
                nn.Linear(inputs.shape[1], 64), nn.SiLU(), nn.Linear(64, actions.shape[1])
            )
            self._fit((inputs - self._mean) / self._std, (actions - self._centre) / self._scale)

    def _project(self, before: Tensor, change: Tensor) -> Tensor:
        return torch.cat(
            [x @ axes for x, axes in zip((before, change), self._axes, strict=True)], 1
        )

    def _fit(self, inputs: Tensor, targets: Tensor) -> None:
        optimizer = torch.optim.AdamW(self._net.parameters(), lr=3e-3, weight_decay=0.1)
        for _ in range(400):
            rows = torch.randint(len(inputs), (256,))
            noisy = inputs[rows] + 0.2 * torch.randn(256, inputs.shape[1])
            optimizer.zero_grad()
            loss: Tensor = F.smooth_l1_loss(self._net(noisy), targets[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    @torch.no_grad()
    def explained(self, pairs: Sequence[Pairs]) -> Float[Tensor, " a"]:
        """R² of every number of the action; minus infinity for one that does not vary."""
        before, change, actions = (torch.cat(column) for column in zip(*pairs, strict=True))
        inputs = (self._project(before, change) - self._mean) / self._std
        guess = self._net(inputs) * self._scale + self._centre
        spread = (actions - actions.mean(0)).square().sum(0)
        left = (guess - actions).square().sum(0)
        return torch.where(spread > 1e-8, 1 - left / spread, -torch.inf)


def _pairs(latents: Float[Tensor, "time view channel h w"], clip: LatentBatch, first: int) -> Pairs:
    """Pairs of consecutive frames from frame `first` on whose action is known."""
    rows = torch.arange(first, len(latents) - 1)
    rows = rows[clip.action_valid[0, rows]]
    before = latents[rows].flatten(1)
    return before, latents[rows + 1].flatten(1) - before, clip.actions[0, rows].float()


@torch.inference_mode()
def _imagined(model: WorldModel, clip: LatentBatch) -> Tensor:
    imagined = imagine_clip(model, clip, START, epsilon=()).latents[0].cpu()
    return torch.cat((clip.latents[0, :START].float(), imagined))
