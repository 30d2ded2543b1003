"""Rollout logs: real frames, imagined frames, confidence and error of recorded episodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from worldmodel.checkpoint import fingerprint
from worldmodel.datasets.dataset import EpisodeSummary
from worldmodel.datasets.rollout_log import RolloutLog
from worldmodel.episodes.episode import Episode
from worldmodel.model import WorldModel
from worldmodel.networks.c3 import C3Network
from worldmodel.precision import dtype_name
from worldmodel.rollouts.open_loop import EPSILONS, EpisodeRollouts
from worldmodel.rollouts.picture_kinds import COMPOSED
from worldmodel.rollouts.pictures import pictures

RECALIBRATED = "recalibrated where the rollout starts from a familiar frame"
"""Name of the confidence in logs and reports of a calibrated model."""


def steps(
    model: WorldModel, episode: Episode, rollouts: EpisodeRollouts, *, kind: str = COMPOSED
) -> Iterator[dict[str, Any]]:
    """Log entries, one per frame, with `pictures` of a `kind` as `imagined`.

    Missing views are black, and `view_valid` is False for them. Unknown actions are NaN. Those of
    imported networks also have the latents, in half precision.
    """
    is_imported = isinstance(model.dynamics, C3Network)
    moved = int(model.config.pairing == "same")
    imagined, view_mask = pictures(model, episode.frames, rollouts, kind=kind), rollouts.view_valid
    if view_mask is not None:
        imagined = torch.where(
            view_mask[..., None, None, None], imagined, torch.zeros_like(imagined)
        )
    for t, horizon in enumerate(rollouts.horizon):
        yield {
            "frame": episode.frames[t].numpy(),
            "imagined": imagined[t].numpy(),
            "action": commanded(episode, t - moved),
            "confidence": rollouts.confidence[t].numpy(),
            "error": rollouts.error[t].half().numpy(),
            "horizon": int(horizon),
            **({} if view_mask is None else {"view_valid": view_mask[t].numpy()}),
            **(latents_of(rollouts, t) if is_imported else {}),
        }


def latents_of(rollouts: EpisodeRollouts, t: int) -> dict[str, np.ndarray]:
    """True and imagined latents of a frame, in half precision."""
    pair = {"latent": rollouts.truth, "imagined_latent": rollouts.imagined}
    return {name: values[t].half().numpy() for name, values in pair.items()}


def commanded(episode: Episode, t: int) -> Float[np.ndarray, " a"]:
    """Row t of the actions as the model pairs them, see `LatentBatch`; NaN if it is unknown."""
    known = t >= 0 and episode.batch.action_valid[0, t]
    action = episode.batch.actions[0, max(t, 0)].numpy()
    return action if known else np.full_like(action, np.nan)


def log_attributes(
    model: WorldModel,
    *,
    command: str,
    checkpoint: Path,
    monitor: Path | None,
    data: Path,
    kind: str = COMPOSED,
) -> dict[str, Any]:
    """Attributes of a log that describe its run; `kind` is that of its pictures.

    With a monitor, the confidence is recalibrated where a rollout starts from a familiar frame.
    """
    return {
        "command": command,
        "data": str(data),
        "model": "/".join(checkpoint.parts[-2:]),
        "model_hash": fingerprint(checkpoint),
        "monitor_hash": None if monitor is None else fingerprint(monitor),
        "rate_hz": model.config.rate_hz,
        "cameras": list(model.config.cameras),
        "confidence": "as stated" if monitor is None else RECALIBRATED,
        **({} if model.has_confidence else {"confidence": "none"}),
        "epsilons": list(EPSILONS),
        "pictures": kind,
        "dtype": dtype_name(model.dynamics.compute_dtype),
    }


EARLIER = {"dtype": "float32", "calibrated_dtype": "float32"}
"""Attributes of logs that were written before they were recorded."""


def open_log(path: Path, attributes: Mapping[str, Any]) -> RolloutLog | None:
    """Log of an earlier run with the same settings, to resume; None if `path` is new or empty.

    Raises:
        ValueError: `path` holds something else, or a log with other settings.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    log = RolloutLog.open(path)
    for name, value in attributes.items():
        if (logged := log.attributes.get(name, EARLIER.get(name))) != value:
            raise ValueError(
                f"{path} was written with `{name}` {logged!r}, not {value!r}; use another folder."
            )
    return log


def write_rollout(
    log: RolloutLog,
    name: str,
    rows: Iterable[Mapping[str, Any]],
    summary: EpisodeSummary,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the rollout of an episode, or the missing rest of an interrupted one.

    `more` (JSON values) is added to the attributes of the rollout.
    """
    attributes = {
        "instruction": summary.instruction,
        "num_frames": summary.num_frames,
        **(more or {}),
    }
    with log.resume(name) if name in log.rollouts() else log.begin(name, attributes) as rollout:
        for row in islice(rows, rollout.num_steps, None):
            rollout.append(row)


@dataclass(frozen=True)
class LoggedRollout:
    """A rollout read from a log."""

    name: str
    attributes: Mapping[str, Any]
    is_closed: bool
    """False while it is being written, or if its writer was interrupted."""
    signals: Mapping[str, np.ndarray]
    """Signal name -> array with one row per frame."""

    def __len__(self) -> int:
        return len(self.horizon)

    @property
    def has_confidence(self) -> bool:
        """Whether the model stated a confidence; without, that of imagined frames is NaN."""
        return not torch.isnan(self.confidence[self.horizon > 0]).any()

    @property
    def frames(self) -> UInt8[np.ndarray, "time view height width 3"]:
        """Real frames."""
        return self.signals["frame"]

    @property
    def imagined(self) -> UInt8[np.ndarray, "time view height width 3"]:
        return self.signals["imagined"]

    @property
    def confidence(self) -> Float[Tensor, "time view channel h w levels"]:
        """P(error <= ε) for each of the log's `epsilons`."""
        return torch.from_numpy(self.signals["confidence"])

    @property
    def error(self) -> Float[Tensor, "time view channel h w"]:
        """Absolute error, in latent standard deviations."""
        return torch.from_numpy(self.signals["error"]).float()

    @property
    def horizon(self) -> Int[np.ndarray, " time"]:
        """Frames since the last real frame of the context; 0 for context frames."""
        return self.signals["horizon"]

    @property
    def view_valid(self) -> Bool[Tensor, "time view"] | None:
        """False where a camera is missing; None: none is."""
        view_mask = self.signals.get("view_valid")
        return None if view_mask is None else torch.from_numpy(view_mask)


def read_rollouts(log: RolloutLog) -> list[LoggedRollout]:
    """All rollouts with at least one complete step, in the order of writing."""
    rollouts = [
        LoggedRollout(name, log.attributes_of(name), log.is_closed(name), log.read(name))
        for name in log.rollouts()
    ]
    return [rollout for rollout in rollouts if rollout.signals]
