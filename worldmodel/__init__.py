"""Video world models that say how likely their own prediction is right."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from worldmodel.extras import explain_missing

if TYPE_CHECKING:
    from worldmodel.calibration.calibrated import Calibration, Checkpoint, load
    from worldmodel.datasets.open_dataset import open_dataset
    from worldmodel.episodes.load import load_episode, load_episodes
    from worldmodel.evaluation.evaluate import evaluate
    from worldmodel.imagination import Imagined
    from worldmodel.model import WorldModel
    from worldmodel.monitors.monitor import RuntimeMonitor
    from worldmodel.monitors.verdict import Level, Verdict
    from worldmodel.runtime.live import online_monitor

_HOME = {
    "Calibration": "calibration.calibrated",
    "Checkpoint": "calibration.calibrated",
    "Imagined": "imagination",
    "Level": "monitors.verdict",
    "RuntimeMonitor": "monitors.monitor",
    "Verdict": "monitors.verdict",
    "WorldModel": "model",
    "evaluate": "evaluation.evaluate",
    "load": "calibration.calibrated",
    "load_episode": "episodes.load",
    "load_episodes": "episodes.load",
    "online_monitor": "runtime.live",
    "open_dataset": "datasets.open_dataset",
}
"""Public name -> module that defines it, imported on first use (PEP 562)."""

__all__ = [
    "Calibration",
    "Checkpoint",
    "Imagined",
    "Level",
    "RuntimeMonitor",
    "Verdict",
    "WorldModel",
    "evaluate",
    "load",
    "load_episode",
    "load_episodes",
    "online_monitor",
    "open_dataset",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with explain_missing(f"{__name__}.{name}"):
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
