"""Saving and loading of fitted monitors: one JSON file and one safetensors file, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from worldmodel.monitors.alarm_rule import AlarmRule, MonitorConfig, Scale
from worldmodel.monitors.causes.classifier import CauseModel
from worldmodel.monitors.channels.action import ActionChannel
from worldmodel.monitors.channels.appearance import AppearanceChannel
from worldmodel.monitors.channels.camera_mounting import CameraSetupCheck
from worldmodel.monitors.channels.channel_set import CHANNELS, Channels
from worldmodel.monitors.channels.colour import ColourChannel
from worldmodel.monitors.channels.confidence import ConfidenceChannel
from worldmodel.monitors.channels.sensor import SensorChannel
from worldmodel.monitors.channels.stillness import StillnessCheck
from worldmodel.monitors.channels.surprise import SurpriseChannel
from worldmodel.monitors.guarantees.episode_threshold import smallest_alpha
from worldmodel.monitors.validity import MonitorMetadata
from worldmodel.monitors.verdict import Level
from worldmodel.structured_files import Positive, Rate, converted, read_json

FORMAT = 3
"""Format version. Earlier ones are refused: not all of their fields have a hash."""
MAXIMA = "calibration.maxima"
"""Array name: largest alarm score of each calibration episode."""
CAUSES = "causes/"
"""Prefix of the cause model's array names."""
MOUNTING = "mounting/"
"""Prefix of the camera setup check's array names."""
STILLNESS = "stillness/"
"""Prefix of the stillness check's array names."""
JSON_NAME, ARRAYS_NAME = "monitor.json", "monitor.safetensors"
PART = ".part"
"""End of the name of a file that is not in its place yet."""
ADVICE = "calibrate it again"


class MonitorFields(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of monitor.json that are no `MonitorMetadata`."""

    frame_shape: list[Positive]
    rate_hz: Rate | None = None
    config: MonitorConfig
    thresholds: dict[Literal["notice", "degrade", "stop"], float]
    scales: dict[str, Scale]
    num_reference: Positive
    num_calibration: Positive
    max_frames: Positive
    arrays_sha256: str
    json_sha256: str


class ArraysHash(msgspec.Struct, frozen=True):
    """Key of monitor.json that names the arrays it belongs to."""

    arrays_sha256: str


@dataclass(frozen=True)
class SavedMonitor:
    """Stored parts of a fitted monitor."""

    alarm_rule: AlarmRule
    sensor: SensorChannel
    metadata: MonitorMetadata
    causes: CauseModel | None = None


def save_monitor(saved: SavedMonitor, folder: Path) -> None:
    """Write a monitor's two files, replacing an earlier monitor in `folder`.

    Both are written next to the old files first and then moved into place one by one, the arrays
    first. A kill before the moves keeps the old monitor; `load_monitor` finds the new one after a
    kill between them.
    """
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    if _is_between_moves(folder):
        os.replace(folder / (JSON_NAME + PART), folder / JSON_NAME)
    alarm_rule, sensor = saved.alarm_rule, saved.sensor
    maxima = {} if alarm_rule.maxima_ is None else {MAXIMA: alarm_rule.maxima_}
    causes = {} if saved.causes is None else saved.causes.arrays()
    mounting = {} if sensor.mounting is None else sensor.mounting.arrays()
    stillness = {} if sensor.stillness is None else sensor.stillness.arrays()
    named = {CAUSES + name: np.ascontiguousarray(array) for name, array in causes.items()}
    named |= {MOUNTING + name: np.ascontiguousarray(array) for name, array in mounting.items()}
    named |= {STILLNESS + name: np.ascontiguousarray(array) for name, array in stillness.items()}
    arrays = save(_arrays(alarm_rule.channels_) | maxima | named)
    fields = {
        "format": FORMAT,
        **saved.metadata.as_dict(),
        "frame_shape": sensor.frame_shape,
        "rate_hz": sensor.rate_hz,
        "config": asdict(alarm_rule.config),
        "thresholds": {
            level.name.lower(): value for level, value in alarm_rule.thresholds_.items()
        },
        "scales": {name: asdict(scale) for name, scale in alarm_rule.scales_.items()},
        "num_reference": alarm_rule.num_reference_,
        "num_calibration": alarm_rule.num_calibration_,
        "smallest_alpha": smallest_alpha(alarm_rule.num_calibration_, alarm_rule.config.delta),
        "max_frames": alarm_rule.max_frames_,
        "arrays_sha256": hashlib.sha256(arrays).hexdigest(),
    }
    fields["json_sha256"] = _json_hash(fields)
    text = json.dumps(fields, indent=2) + "\n"
    _replace({folder / ARRAYS_NAME: arrays, folder / JSON_NAME: text.encode()})


def load_monitor(folder: Path) -> SavedMonitor:
    """Read what `save_monitor` wrote.

    Raises:
        FileNotFoundError: `folder` holds no monitor.
        ValueError: a file is corrupt, changed, or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    name = JSON_NAME + PART if _is_between_moves(folder) else JSON_NAME
    if not (folder / name).is_file():
        raise FileNotFoundError(
            f"No monitor in {folder}: {JSON_NAME} is missing; run `worldmodel calibrate`."
        )
    try:
        fields, metadata = _read_fields(folder / name)
        blob = (folder / ARRAYS_NAME).read_bytes()
        if hashlib.sha256(blob).hexdigest() != fields.arrays_sha256:
            raise ValueError(f"{ARRAYS_NAME} does not match the checksum in {JSON_NAME}")
        arrays = load(blob)
        sensor, causes = _sensor(fields, metadata, arrays), _causes(arrays)
        alarm_rule = _alarm_rule(fields, arrays)
        _check_numbers(alarm_rule)
        return SavedMonitor(alarm_rule, sensor, metadata, causes)
    except (
        ValueError, LookupError, TypeError, AttributeError, OSError, SafetensorError
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()).rstrip(".").removesuffix(f"; {ADVICE}")
        raise ValueError(f"The monitor in {folder} cannot be read ({reason}); {ADVICE}.") from error


def _read_fields(file: Path) -> tuple[MonitorFields, MonitorMetadata]:
    """Content of monitor.json, checked against its types and its hash."""
    stored = read_json(file, dict, ADVICE)
    if stored.get("format") != FORMAT:
        raise ValueError(f"its format is {stored.get('format')}; this version reads {FORMAT}")
    fields = converted(stored, MonitorFields, str(file), ADVICE)
    metadata = converted(stored, MonitorMetadata, str(file), ADVICE)
    del stored["json_sha256"]
    if fields.json_sha256 != _json_hash(stored):
        raise ValueError(f"{JSON_NAME} was changed after it was written")
    return fields, metadata


def _arrays(channels: Channels) -> dict[str, np.ndarray]:
    parts = {part: getattr(channels, part) for part in CHANNELS}
    return {
        f"{part}.{name}": np.ascontiguousarray(array)
        for part, channel in parts.items()
        if channel is not None
        for name, array in channel.arrays().items()
    }


def _take(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Remove the arrays whose names start with `prefix`; return them without it."""
    names = [name for name in arrays if name.startswith(prefix)]
    return {name.removeprefix(prefix): arrays.pop(name) for name in names}


def _causes(arrays: dict[str, np.ndarray]) -> CauseModel | None:
    """The cause model, if one was saved; its arrays leave `arrays`."""
    parts = _take(arrays, CAUSES)
    return CauseModel.from_arrays(parts) if parts else None


def _sensor(
    fields: MonitorFields, metadata: MonitorMetadata, arrays: dict[str, np.ndarray]
) -> SensorChannel:
    """The sensor channel; its arrays leave `arrays`."""
    parts = _take(arrays, MOUNTING)
    mounting = CameraSetupCheck.from_arrays(parts) if parts else None
    parts = _take(arrays, STILLNESS)
    return SensorChannel(
        tuple(fields.frame_shape),
        rate_hz=fields.rate_hz,
        mounting=mounting,
        stillness=StillnessCheck.from_arrays(parts) if parts else None,
        action_rows=metadata.action_rows,
    )


def _alarm_rule(fields: MonitorFields, arrays: dict[str, np.ndarray]) -> AlarmRule:
    config = fields.config
    maxima = arrays.pop(MAXIMA, None)
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        part, key = name.split(".")
        parts.setdefault(part, {})[key] = array
    restore: dict[str, Callable[..., Any]] = {
        "appearance": AppearanceChannel.from_arrays,
        "colour": ColourChannel.from_arrays,
        "action": ActionChannel.from_arrays,
        "confidence": partial(
            ConfidenceChannel.from_arrays, threshold=config.low_confidence, region=config.region
        ),
        "surprise": SurpriseChannel.from_arrays,
    }
    alarm_rule = AlarmRule(config)
    alarm_rule.channels_ = Channels(**{part: restore[part](a) for part, a in parts.items()})
    alarm_rule.scales_ = fields.scales
    alarm_rule.thresholds_ = {
        Level[name.upper()]: value for name, value in fields.thresholds.items()
    }
    alarm_rule.num_reference_, alarm_rule.num_calibration_ = (
        fields.num_reference,
        fields.num_calibration,
    )
    alarm_rule.max_frames_, alarm_rule.maxima_ = fields.max_frames, maxima
    return alarm_rule


def _check_numbers(alarm_rule: AlarmRule) -> None:
    """Raise on values that no fit produces; a NaN threshold would never be exceeded."""
    if set(alarm_rule.thresholds_) != set(alarm_rule.config.alphas):
        raise ValueError(f"its thresholds are {[level.name for level in alarm_rule.thresholds_]}")
    scales = [(scale.centre, scale.spread) for scale in alarm_rule.scales_.values()]
    numbers = np.array([*alarm_rule.thresholds_.values(), *np.ravel(scales)], dtype=np.float64)
    arrays = [array for array in _arrays(alarm_rule.channels_).values() if array.dtype.kind == "f"]
    if not all(np.isfinite(values).all() for values in (numbers, *arrays)):
        raise ValueError("it holds NaN or infinite numbers")
    if alarm_rule.maxima_ is not None:
        if alarm_rule.maxima_.shape != (alarm_rule.num_calibration_,):
            raise ValueError(
                f"it holds maxima of shape {alarm_rule.maxima_.shape}, "
                f"but had {alarm_rule.num_calibration_} calibration episodes"
            )
        if not np.isfinite(alarm_rule.maxima_).all():
            raise ValueError("a maximum of a calibration episode is NaN or infinite")
    if any(scale.spread <= 0 for scale in alarm_rule.scales_.values()):
        raise ValueError("the spread of a signal is not positive")


def _json_hash(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _is_between_moves(folder: Path) -> bool:
    """Whether a save was killed after it moved the arrays and before it moved the JSON file."""
    waiting = folder / (JSON_NAME + PART)
    if not waiting.is_file():
        return False
    try:
        written = read_json(waiting, ArraysHash).arrays_sha256
        return written == hashlib.sha256((folder / ARRAYS_NAME).read_bytes()).hexdigest()
    except (ValueError, OSError):
        return False  # the save was killed earlier


def _replace(files: Mapping[Path, bytes]) -> None:
    """Write all files to disk, then move each into place."""
    parts = {path.with_name(path.name + PART): path for path in files}
    try:
        for part, path in parts.items():
            with open(part, "wb") as file:
                file.write(files[path])
                file.flush()
                os.fsync(file.fileno())
    except BaseException:  # Ctrl-C too: nothing half-written is left
        for part in parts:
            part.unlink(missing_ok=True)
        raise
    for part, path in parts.items():
        os.replace(part, path)
