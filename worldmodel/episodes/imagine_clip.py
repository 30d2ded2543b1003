"""Imagine the frames of a recorded clip after its first ones, under its own actions."""

from __future__ import annotations

from typing import Any

from worldmodel.episodes.clips import LatentBatch
from worldmodel.imagination import Imagined
from worldmodel.model import WorldModel


def imagine_clip(model: WorldModel, clip: LatentBatch, start: int, **options: Any) -> Imagined:
    """Frames `start` to the last one of every window, imagined from its first `start` frames.

    Args:
        model: The world model.
        clip: Windows of recorded episodes, on the model's device.
        start: Real frames.
        options: Further options of `WorldModel.imagine`, such as `epsilon`, `seeds` and `sampling`.
    """
    return model.imagine(
        clip.latents[:, :start].float(),
        clip.actions[:, :-1],
        action_valid=clip.action_valid[:, :-1],
        view_valid=None if clip.view_valid is None else clip.view_valid[:, :start],
        first_state=None if clip.states is None else clip.states[:, 0],
        **options,
    )
