"""The judge: how far to trust a video world model, step by step. Arrays in, verdicts out."""

from worldmodel.monitors.alarm_rule import MonitorConfig
from worldmodel.monitors.channels.appearance import AppearanceChannel
from worldmodel.monitors.channels.confidence import ConfidenceChannel
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.claims import Claims, PredictionCheck
from worldmodel.monitors.errors import NotFittedError
from worldmodel.monitors.guarantees.drift import FleetDrift
from worldmodel.monitors.guarantees.episode_threshold import (
    EpisodeThreshold,
    episodes_needed,
    smallest_alpha,
)
from worldmodel.monitors.guarantees.risk_control import RiskControl, risk_controls
from worldmodel.monitors.heatmaps import heatmap, legend, overlay, with_legend
from worldmodel.monitors.metrics.detection import (
    DetectionSummary,
    alarm_delay,
    auroc,
    auroc_interval,
    false_positive_rate,
    summarize_detection,
)
from worldmodel.monitors.metrics.localisation import (
    Localisation,
    pixel_aupro,
    pixel_auroc,
    pointing,
    score_picture,
    summarize_localisation,
)
from worldmodel.monitors.metrics.rank_correlation import (
    AssociationSummary,
    ause,
    kendall_tau,
    shepherds_pi,
    summarize_association,
)
from worldmodel.monitors.metrics.uncertainty_split import Decomposition, decompose
from worldmodel.monitors.metrics.watched import WatchedEpisode
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.reliability.counts import CalibrationSummary, Reliability, summarize
from worldmodel.monitors.reliability.event_table import SubpatchMeans, evaluate_events
from worldmodel.monitors.reliability.events import EventConfidence
from worldmodel.monitors.reliability.measures import (
    ReliabilityBins,
    bin_forecasts,
    brier_decomposition,
    episode_bootstrap,
    expected_calibration_error,
    max_calibration_error,
    per_video_calibration_error,
)
from worldmodel.monitors.reliability.parametric import (
    BetaRecalibration,
    PlattRecalibration,
    TemperatureRecalibration,
)
from worldmodel.monitors.reliability.recalibration import (
    CameraRecalibration,
    EpsilonRecalibration,
    HorizonRecalibration,
    IsotonicRecalibration,
)
from worldmodel.monitors.validity import MonitorMetadata
from worldmodel.monitors.verdict import Evidence, Level, Verdict

__all__ = [
    "AppearanceChannel",
    "AssociationSummary",
    "BetaRecalibration",
    "CalibrationSummary",
    "CameraRecalibration",
    "Claims",
    "ConfidenceChannel",
    "Decomposition",
    "DetectionSummary",
    "EpisodeSignals",
    "EpisodeThreshold",
    "EpsilonRecalibration",
    "EventConfidence",
    "Evidence",
    "FleetDrift",
    "HorizonRecalibration",
    "IsotonicRecalibration",
    "Level",
    "Localisation",
    "MonitorConfig",
    "MonitorMetadata",
    "NotFittedError",
    "PlattRecalibration",
    "PredictionCheck",
    "Reliability",
    "ReliabilityBins",
    "RiskControl",
    "RuntimeMonitor",
    "SubpatchMeans",
    "TemperatureRecalibration",
    "Verdict",
    "WatchedEpisode",
    "alarm_delay",
    "auroc",
    "auroc_interval",
    "ause",
    "bin_forecasts",
    "brier_decomposition",
    "decompose",
    "episode_bootstrap",
    "episodes_needed",
    "evaluate_events",
    "expected_calibration_error",
    "false_positive_rate",
    "heatmap",
    "kendall_tau",
    "legend",
    "max_calibration_error",
    "overlay",
    "per_video_calibration_error",
    "pixel_aupro",
    "pixel_auroc",
    "pointing",
    "risk_controls",
    "score_picture",
    "shepherds_pi",
    "smallest_alpha",
    "summarize",
    "summarize_association",
    "summarize_detection",
    "summarize_localisation",
    "with_legend",
]
