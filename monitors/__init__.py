"""Runtime monitors: how far to trust a video world model, step by step. Arrays in, verdicts out.

The sub-rooms hold the parts: `channels` (scores), `causes` (names of changes), `guarantees` (alarm
rates), `reliability` (calibration of confidence) and `metrics` (detection and ranking quality).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worldmodel.monitors.alarm_rule import MonitorConfig
    from worldmodel.monitors.channels.signals import EpisodeSignals
    from worldmodel.monitors.claims import Claims, PredictionCheck
    from worldmodel.monitors.errors import NotFittedError
    from worldmodel.monitors.guarantees.drift import FleetDrift
    from worldmodel.monitors.guarantees.risk_control import RiskControl
    from worldmodel.monitors.monitor import RuntimeMonitor
    from worldmodel.monitors.reliability.counts import Reliability
    from worldmodel.monitors.verdict import Evidence, Level, Verdict

_HOME = {
    "Claims": "claims",
    "EpisodeSignals": "channels.signals",
    "Evidence": "verdict",
    "FleetDrift": "guarantees.drift",
    "Level": "verdict",
    "MonitorConfig": "alarm_rule",
    "NotFittedError": "errors",
    "PredictionCheck": "claims",
    "Reliability": "reliability.counts",
    "RiskControl": "guarantees.risk_control",
    "RuntimeMonitor": "monitor",
    "Verdict": "verdict",
}
"""Public name -> module that defines it, imported on first use (PEP 562)."""

__all__ = [
    "Claims",
    "EpisodeSignals",
    "Evidence",
    "FleetDrift",
    "Level",
    "MonitorConfig",
    "NotFittedError",
    "PredictionCheck",
    "Reliability",
    "RiskControl",
    "RuntimeMonitor",
    "Verdict",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
