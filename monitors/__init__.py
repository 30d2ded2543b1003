"""The judge: how far to trust a video world model, step by step. Arrays in, verdicts out."""

from worldmodel.monitors.appearance import AppearanceChannel
from worldmodel.monitors.calibration import ReliabilityBins, bin_forecasts
from worldmodel.monitors.confidence import ConfidenceChannel
from worldmodel.monitors.errors import NotFittedError
from worldmodel.monitors.judge import MonitorConfig
from worldmodel.monitors.monitor import ImaginedFrame, RuntimeMonitor, WatchedEpisode
from worldmodel.monitors.reliability import CalibrationSummary, Reliability, summarize
from worldmodel.monitors.signals import EpisodeSignals
from worldmodel.monitors.threshold import EpisodeThreshold, episodes_needed, smallest_alpha
from worldmodel.monitors.verdict import Evidence, Level, Verdict

__all__ = [
    "AppearanceChannel",
    "CalibrationSummary",
    "ConfidenceChannel",
    "EpisodeSignals",
    "EpisodeThreshold",
    "Evidence",
    "ImaginedFrame",
    "Level",
    "MonitorConfig",
    "NotFittedError",
    "Reliability",
    "ReliabilityBins",
    "RuntimeMonitor",
    "Verdict",
    "WatchedEpisode",
    "bin_forecasts",
    "episodes_needed",
    "smallest_alpha",
    "summarize",
]
