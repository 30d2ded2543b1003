"""Calibration of a world model (monitor, recalibration, gate) and its files."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from worldmodel.calibration.features import FrameFeatures, looks_familiar
from worldmodel.calibration.gate import Gate
from worldmodel.calibration.seal import check_seal, environment_key, write_seal
from worldmodel.certificate import MONITOR, Certificate
from worldmodel.checkpoint import (
    check_trained,
    checkpoint_folder,
    content_hash,
    fingerprint,
    recover_folder,
    replaced_folder,
    short_hash,
)
from worldmodel.episodes.clips import LatentBatch
from worldmodel.episodes.episode import Episode
from worldmodel.model import WorldModel
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.validity import staleness
from worldmodel.monitors.verdict import Evidence
from worldmodel.precision import dtype_name
from worldmodel.rollouts.open_loop import EpisodeRollouts, roll_out
from worldmodel.rollouts.recalibrate import Curves, recalibrated, restored_curves
from worldmodel.structured_files import Positive, read_json

LOG = logging.getLogger(__name__)
WATCH_HORIZON = 4
"""Frames per rollout segment for the monitor. Predictions further ahead are too uncertain to be
violated: with 16, the monitor detected action faults about ten frames later."""
WATCH_START = 1
"""Real frames before the first imagined one: 1, to detect faults of the first frames, too."""
RECALIBRATION, ROLLOUTS = "recalibration.safetensors", "rollouts.json"


@dataclass(frozen=True)
class Calibration:
    """Result of `worldmodel calibrate`, stored in `<checkpoint>/monitor`."""

    monitor: RuntimeMonitor
    """Monitor of real frames and of the model's confidence in them."""
    recalibration: Curves
    """Curves per horizon band and error level of `EPSILONS`, and per camera if several."""
    horizon: int
    """Longest horizon of the recalibration, in frames."""
    watch_horizon: int
    """Frames per rollout segment for the monitor."""
    watch_start: int = WATCH_START
    """Real frames of an episode before the first frame that is imagined for the monitor."""

    def claims(
        self, model: WorldModel, episodes: Sequence[LatentBatch], *, seed: int
    ) -> list[EpisodeRollouts]:
        """Rollouts of recorded episodes, for the monitor to check, as live: without states."""
        given = [replace(episode, states=None) for episode in episodes]
        return roll_out(model, given, start=self.watch_start, horizon=self.watch_horizon, seed=seed)

    def shown(
        self, model: WorldModel, episode: Episode, rollouts: EpisodeRollouts
    ) -> EpisodeRollouts:
        """The rollouts with the confidence that logs, reports and tables show.

        It is recalibrated where a segment starts from a frame that looks familiar to the monitor,
        and as stated elsewhere: the curves hold for nominal episodes only.
        """
        familiar = looks_familiar(FrameFeatures(model), self.monitor.alarm_rule_, episode, rollouts)
        return recalibrated(rollouts, self.recalibration, familiar=familiar)

    def save(self, folder: Path) -> None:
        """Write all files into `folder`, and the seal of all that it holds then."""
        self.monitor.save(folder)
        (folder / RECALIBRATION).write_bytes(save_arrays(self.recalibration.arrays()))
        rollouts = RolloutSettings(self.horizon, self.watch_horizon, self.watch_start)
        text = json.dumps(msgspec.to_builtins(rollouts))
        (folder / ROLLOUTS).write_text(text + "\n", encoding="utf-8")
        write_seal(folder)

    @classmethod
    def load(
        cls, folder: Path, model: WorldModel, *, model_sha256: str | None = None
    ) -> Calibration:
        """Read what `save` or `worldmodel calibrate` wrote.

        Args:
            folder: Folder of a monitor. If the environment variable WORLDMODEL_SIGN_KEY names a key
                file, that key must have signed it.
            model: The model to watch.
            model_sha256: The `content_hash` of its checkpoint; None: only its tokenizer and its
                action spec are compared with those the monitor was fitted for.

        Raises:
            OSError: There is no monitor in `folder`.
            ValueError: A file is corrupt or was changed, the signature is missing or wrong, or the
                monitor was fitted for another model.
        """
        recover_folder(folder)
        if (folder / "monitor.json").is_file():
            check_seal(folder, key=environment_key(), model_sha256=model_sha256)
        monitor = RuntimeMonitor.load(
            folder,
            features=FrameFeatures(model),
            model_hash=model_sha256 and short_hash(model_sha256),
            action_spec=model.config.action_spec.as_dict(),
        )
        try:
            rollouts = read_json(folder / ROLLOUTS, RolloutSettings, "calibrate again")
            recalibration = restored_curves(load_arrays((folder / RECALIBRATION).read_bytes()))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".").removesuffix("; calibrate again")
            raise ValueError(
                f"The monitor in {folder} cannot be read ({reason}); calibrate it again."
            ) from error
        return cls(
            monitor, recalibration, rollouts.horizon, rollouts.watch_horizon, rollouts.watch_start
        )


class RolloutSettings(msgspec.Struct):
    """Numbers of frames of a `Calibration`, as they are stored."""

    horizon: Positive
    watch_horizon: Positive
    watch_start: Positive


RECORD = "calibration.json"
"""Record of the calibration run, stored next to the monitor's own files."""


def check_target(folder: Path) -> None:
    """Raise if `folder` holds anything but a monitor."""
    if folder.is_file() or (
        folder.is_dir() and any(folder.iterdir()) and not (folder / "monitor.json").is_file()
    ):
        raise ValueError(f"{folder} exists and is no monitor; use another folder.")


def save_calibration(
    calibration: Calibration,
    gate: Gate,
    folder: Path,
    record: dict[str, Any],
    *,
    key: bytes | None = None,
    model_sha256: str | None = None,
) -> None:
    """Write monitor, recalibration, gate and `record`; replace an earlier monitor atomically.

    Args:
        calibration: The calibration.
        gate: The gate.
        folder: Folder of the monitor.
        record: Record of the calibration run, as JSON values.
        key: Key that signs all files; None: no signature.
        model_sha256: `content_hash` of the model.
    """
    check_target(folder)
    with replaced_folder(folder) as part:
        calibration.save(part)
        gate.save(part / "gate")
        (part / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        write_seal(part, key=key, model_sha256=model_sha256)


def load_calibration(
    model: WorldModel, checkpoint: Path, monitor: Path | None = None
) -> Calibration:
    """Load the calibration of a checkpoint; warn if it is stale.

    If the model failed its certificate as a model to monitor, no verdict is a `TRUST`.

    Raises:
        OSError: There is no monitor.
        ValueError: As `Calibration.load`, or it was made for other frames.
    """
    folder = monitor or checkpoint / "monitor"
    calibration = Calibration.load(folder, model, model_sha256=content_hash(checkpoint))
    expected = (model.config.dynamics.views, *model.config.image_size, 3)
    if calibration.monitor.frame_shape_ != expected:
        raise ValueError(
            f"The monitor in {folder} was fitted on frames of shape "
            f"{calibration.monitor.frame_shape_}, but the model's frames have shape {expected}; "
            "calibrate this model."
        )
    if evidence := staleness(calibration.monitor.metadata_, calibration.monitor.today()):
        LOG.warning("note: the monitor in %s is stale: %s", folder, evidence.note)
    warn_of_precision(model, folder)
    certificate = Certificate.load(checkpoint)
    if certificate is not None and certificate.uses[MONITOR].passed is False:
        calibration.monitor.not_certified = Evidence(None, 0.0, certificate.sentence())
    return calibration


def warn_of_precision(model: WorldModel, monitor: Path) -> None:
    """Warn if the model runs in another precision than that of its calibration."""
    own, calibrated = dtype_name(model.dynamics.compute_dtype), read_record(monitor).dtype
    if own != calibrated:
        LOG.warning(
            "note: the networks run in %s, but the monitor in %s was calibrated in %s: confidence "
            "and alarm rates may differ; calibrate with `--dtype %s`.",
            own, monitor, calibrated, own,
        )  # fmt: skip


class CalibrationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of `RECORD` that tell what a monitor was fitted on."""

    data: str = ""
    calibration: list[str] = []
    reference_data: str = ""
    reference: list[str] = []
    renderer: str | None = None
    dtype: str = "float32"
    """Precision that the networks ran in."""


def read_record(monitor: Path) -> CalibrationRecord:
    """Record that `worldmodel calibrate` wrote; empty for a monitor made in another way."""
    file = monitor / RECORD
    if not file.is_file():
        return CalibrationRecord()
    return read_json(file, CalibrationRecord, "calibrate again")


@dataclass(frozen=True)
class Checkpoint:
    """World model with its calibration."""

    model: WorldModel
    calibration: Calibration
    folder: Path
    """Folder of the model."""
    monitor_folder: Path
    """Folder of the monitor, the recalibration and the gate."""

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        monitor: Path | None = None,
        stages: Sequence[str] = ("confidence",),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Checkpoint:
        """Load a calibrated checkpoint.

        Args:
            source: Folder of the checkpoint, or the name of a shipped one ("tabletop").
            monitor: Folder that `worldmodel calibrate` wrote; None: `monitor` in the checkpoint.
            stages: Training stages that must be complete.
            device: Device of the networks.
            dtype: Precision of the networks.

        Raises:
            OSError: The model is not calibrated.
            ValueError: The checkpoint does not exist, is corrupt or is only partly trained, or the
                monitor was calibrated for other weights.
        """
        folder = checkpoint_folder(source)
        model = WorldModel.load(folder, device=device, dtype=dtype)
        check_trained(model.config.provenance, source, *stages)
        monitor_folder = monitor or folder / "monitor"
        return cls(model, load_calibration(model, folder, monitor_folder), folder, monitor_folder)

    @cached_property
    def gate(self) -> Gate:
        """Gate that selects the rollouts to trust, read on first use."""
        check_seal(self.monitor_folder, key=environment_key())
        return Gate.load(self.monitor_folder / "gate", model_hash=fingerprint(self.folder))


def load(source: str | Path, *, monitor: Path | None = None) -> Checkpoint:
    """Load a calibrated checkpoint; short for `Checkpoint.load`.

    Args:
        source: Folder of the checkpoint, or the name of a shipped one ("tabletop").
        monitor: Folder that `worldmodel calibrate` wrote; None: `monitor` in the checkpoint.
    """
    return Checkpoint.load(source, monitor=monitor)
