"""The judge: how far to trust a video world model, step by step. Arrays in, verdicts out."""

from worldmodel.monitors.appearance import AppearanceChannel
from worldmodel.monitors.calibration import (
    ReliabilityBins,
    bin_forecasts,
    brier_decomposition,
    episode_bootstrap,
    expected_calibration_error,
    max_calibration_error,
    per_video_calibration_error,
)
from worldmodel.monitors.confidence import ConfidenceChannel
from worldmodel.monitors.detection import (
    DetectionSummary,
    alarm_delay,
    auroc,
    auroc_interval,
    false_positive_rate,
    summarize_detection,
)
from worldmodel.monitors.errors import NotFittedError
from worldmodel.monitors.heatmaps import heatmap, legend, overlay, with_legend
from worldmodel.monitors.judge import MonitorConfig
from worldmodel.monitors.monitor import ImaginedFrame, RuntimeMonitor, WatchedEpisode
from worldmodel.monitors.recalibration import (
    EpsilonRecalibration,
    HorizonRecalibration,
    IsotonicRecalibration,
)
from worldmodel.monitors.reliability import CalibrationSummary, Reliability, summarize
from worldmodel.monitors.signals import EpisodeSignals
from worldmodel.monitors.threshold import EpisodeThreshold, episodes_needed, smallest_alpha
from worldmodel.monitors.verdict import Evidence, Level, Verdict

__all__ = [
    "AppearanceChannel",
    "CalibrationSummary",
    "ConfidenceChannel",
    "DetectionSummary",
    "EpisodeSignals",
    "EpisodeThreshold",
    "EpsilonRecalibration",
    "Evidence",
    "HorizonRecalibration",
    "ImaginedFrame",
    "IsotonicRecalibration",
    "Level",
    "MonitorConfig",
    "NotFittedError",
    "Reliability",
    "ReliabilityBins",
    "RuntimeMonitor",
    "Verdict",
    "WatchedEpisode",
    "alarm_delay",
    "auroc",
    "auroc_interval",
    "bin_forecasts",
    "brier_decomposition",
    "episode_bootstrap",
    "episodes_needed",
    "expected_calibration_error",
    "false_positive_rate",
    "heatmap",
    "legend",
    "max_calibration_error",
    "overlay",
    "per_video_calibration_error",
    "smallest_alpha",
    "summarize",
    "summarize_detection",
    "with_legend",
]
