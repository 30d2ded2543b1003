"""Gate of the evaluation in imagination: selects rollouts to trust by the model's confidence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from worldmodel.calibration.features import confidence_maps
from worldmodel.episodes.clips import LatentBatch
from worldmodel.model import WorldModel
from worldmodel.monitors.alarm_rule import MonitorConfig
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.guarantees.episode_threshold import smallest_alpha
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.validity import MonitorMetadata
from worldmodel.monitors.verdict import Level
from worldmodel.rollouts.open_loop import EpisodeRollouts, roll_out
from worldmodel.structured_files import Positive, read_json

ALPHA = 0.2
"""Fraction of nominal rollouts that the gate may stop; higher than for alarms of a monitor."""


def rollout_signals(rollout: EpisodeRollouts, horizon: int) -> EpisodeSignals:
    """Input of the gate: confidence of the first `horizon` imagined frames of a rollout."""
    rows = (rollout.horizon > 0) & (rollout.horizon <= horizon)
    return EpisodeSignals(confidence=confidence_maps(rollout)[rows], horizon=rollout.horizon[rows])


@dataclass(frozen=True)
class Gate:
    """Gate that stops a rollout if its confidence is unusually low at any horizon."""

    monitor: RuntimeMonitor
    horizon: int
    """Longest horizon it was fitted on, in frames; later frames are ignored."""

    def lets_through(self, rollout: EpisodeRollouts) -> bool:
        """Whether to trust the rollout."""
        watched = self.monitor.watch(rollout_signals(rollout, self.horizon))
        return bool(watched.levels.max() < Level.NOTICE)

    def save(self, folder: Path) -> None:
        """Write the gate into `folder`."""
        self.monitor.save(folder)
        (folder / "gate.json").write_text(
            json.dumps({"horizon": self.horizon}) + "\n", encoding="utf-8"
        )

    @classmethod
    def load(cls, folder: Path, *, model_hash: str | None = None) -> Gate:
        """Read what `save` wrote; `model_hash` is the `fingerprint` of the model in use.

        Raises:
            OSError: There is no gate in `folder`.
            ValueError: A file is corrupt, or the gate was fitted for another model.
        """
        monitor = RuntimeMonitor.load(folder, model_hash=model_hash)
        try:
            stored = read_json(folder / "gate.json", GateSettings, "calibrate it again")
        except OSError as error:
            raise ValueError(f"The gate in {folder} cannot be read; calibrate it again.") from error
        return cls(monitor, stored.horizon)


class GateSettings(msgspec.Struct):
    """Content of gate.json."""

    horizon: Positive


@torch.inference_mode()
def fit_gate(
    model: WorldModel,
    calibration: Sequence[LatentBatch],
    reference: Sequence[LatentBatch],
    *,
    metadata: MonitorMetadata | None = None,
) -> Gate:
    """Fit the gate to nominal rollouts from the first frame of each episode.

    Args:
        model: The world model.
        calibration: Held-out episodes, which set the threshold.
        reference: Reference episodes, none of which is in `calibration`.
        metadata: Hashes of the model and the data, and expiry date.
    """
    shortest = min(batch.latents.shape[1] for batch in (*calibration, *reference))
    horizon = min(model.config.trained_horizon, shortest - 1)

    def signals(batches: Sequence[LatentBatch]) -> list[EpisodeSignals]:
        rolled = roll_out(model, batches, start=1, horizon=max(b.latents.shape[1] for b in batches))
        return [rollout_signals(rollout, horizon) for rollout in rolled]

    alpha = max(ALPHA, smallest_alpha(len(calibration)))
    config = MonitorConfig(alpha_notice=alpha, alpha_degrade=alpha, alpha_stop=alpha)
    size = (model.config.dynamics.views, *model.config.image_size, 3)
    monitor = RuntimeMonitor(config).fit(
        signals(calibration), frame_shape=size, reference=signals(reference), metadata=metadata
    )
    return Gate(monitor, horizon)
