"""A fitted monitor on disk: one JSON file and one safetensors file, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.monitors.action import ActionChannel
from worldmodel.monitors.appearance import AppearanceChannel
from worldmodel.monitors.channels import CHANNELS, Channels
from worldmodel.monitors.colour import ColourChannel
from worldmodel.monitors.confidence import ConfidenceChannel
from worldmodel.monitors.judge import EpisodeJudge, MonitorConfig, Scale
from worldmodel.monitors.surprise import SurpriseChannel
from worldmodel.monitors.verdict import Level

FORMAT = 1
"""Raised when a file of an older format can no longer be read."""
JSON_NAME, ARRAYS_NAME = "monitor.json", "monitor.safetensors"


def save_judge(judge: EpisodeJudge, frame_shape: tuple[int, ...], folder: Path) -> None:
    """Write `judge` and its frames' shape; each file appears whole or not at all."""
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    arrays = save(_arrays(judge.channels_))
    fields = {
        "format": FORMAT,
        "frame_shape": frame_shape,
        "config": asdict(judge.config),
        "thresholds": {level.name.lower(): value for level, value in judge.thresholds_.items()},
        "scales": {name: asdict(scale) for name, scale in judge.scales_.items()},
        "num_reference": judge.num_reference_,
        "num_calibration": judge.num_calibration_,
        "max_frames": judge.max_frames_,
        "arrays_sha256": hashlib.sha256(arrays).hexdigest(),
    }
    _replace(folder / ARRAYS_NAME, arrays)
    _replace(folder / JSON_NAME, (json.dumps(fields, indent=2) + "\n").encode())


def load_judge(folder: Path) -> tuple[EpisodeJudge, tuple[int, ...]]:
    """The judge that `save_judge` wrote, and the shape of the frames it judges."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not (folder / JSON_NAME).is_file():
        raise FileNotFoundError(
            f"No monitor in {folder}: {JSON_NAME} is missing; run `worldmodel calibrate`."
        )
    try:
        fields = json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))
        blob = (folder / ARRAYS_NAME).read_bytes()
        if fields["format"] != FORMAT:
            raise ValueError(f"its format is {fields['format']}, this version reads {FORMAT}")
        if hashlib.sha256(blob).hexdigest() != fields["arrays_sha256"]:
            raise ValueError(f"{ARRAYS_NAME} is not the file that {JSON_NAME} was written with")
        judge = _judge(fields, load(blob))
        _check_numbers(judge)
        return judge, tuple(fields["frame_shape"])
    except (ValueError, LookupError, TypeError, AttributeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"The monitor in {folder} cannot be read ({reason}); calibrate it again."
        ) from error


def _arrays(channels: Channels) -> dict[str, np.ndarray]:
    parts = {part: getattr(channels, part) for part in CHANNELS}
    return {
        f"{part}.{name}": np.ascontiguousarray(array)
        for part, channel in parts.items()
        if channel is not None
        for name, array in channel.arrays().items()
    }


def _judge(fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> EpisodeJudge:
    config = MonitorConfig(**fields["config"])
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
    judge = EpisodeJudge(config)
    judge.channels_ = Channels(**{part: restore[part](a) for part, a in parts.items()})
    judge.scales_ = {name: Scale(**scale) for name, scale in fields["scales"].items()}
    judge.thresholds_ = {
        Level[name.upper()]: float(value) for name, value in fields["thresholds"].items()
    }
    judge.num_reference_, judge.num_calibration_ = (
        fields["num_reference"],
        fields["num_calibration"],
    )
    judge.max_frames_ = fields["max_frames"]
    return judge


def _check_numbers(judge: EpisodeJudge) -> None:
    """Refuse what no fit gives: a threshold that is not a number is never exceeded."""
    if set(judge.thresholds_) != set(judge.config.alphas):
        raise ValueError(f"its thresholds are {[level.name for level in judge.thresholds_]}")
    scales = [(scale.centre, scale.spread) for scale in judge.scales_.values()]
    numbers = np.array([*judge.thresholds_.values(), *np.ravel(scales)], dtype=np.float64)
    arrays = [array for array in _arrays(judge.channels_).values() if array.dtype.kind == "f"]
    if not all(np.isfinite(values).all() for values in (numbers, *arrays)):
        raise ValueError("it holds numbers that are NaN or infinite")
    if any(scale.spread <= 0 for scale in judge.scales_.values()):
        raise ValueError("the spread of a signal is not positive")


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)
