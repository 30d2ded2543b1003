"""C3's evaluation of its confidence (arXiv:2512.05927), and the same figures of the right frames.

C3's published code compares generated frame k with true frame k + 1, counts the context frame
(confidence 0, which is in no bin), averages the absolute calibration error of the videos, and
divides the summed accuracy by the number of values in bins. Here it is reproduced as it is. The
figures beside it compare imagined frame k with true frame k, leave out the context, and pool all
values before taking the absolute error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped

from worldmodel.checkpoint import replaced_folder
from worldmodel.datasets.file_names import safe_file_name
from worldmodel.rollouts.log import LoggedRollout
from worldmodel.rollouts.open_loop import EPSILONS

NUM_BINS = 20
EDGES = np.linspace(0, 1, NUM_BINS + 1)
"""Bins contain their upper edge, not their lower one."""


@dataclass(frozen=True)
class C3Figures:
    """Accuracy and calibration errors at one error level."""

    accuracy: float
    """Share of values with an error of at most ε."""
    ece: float
    """Expected calibration error."""
    mce: float
    """Largest calibration error of a bin."""


@dataclass(frozen=True)
class VideoBins:
    """Confidence of a video, sorted into bins, at one error level."""

    count: Int[np.ndarray, " bin"]
    gap: Float[np.ndarray, " bin"]
    """Sum of outcome minus confidence."""
    accuracy: float
    """Share of correct values among all, whether in a bin or not."""
    size: int
    """Number of all values."""


def video_bins(
    confidence: Float[np.ndarray, " value"], is_correct: Bool[np.ndarray, " value"]
) -> VideoBins:
    """Sort the values of a video into C3's bins.

    >>> video_bins(np.array([0.0, 0.05, 0.06]), np.array([True, True, False])).count[:3]
    array([1, 1, 0])
    """
    bins = np.searchsorted(EDGES, confidence.astype(np.float64), side="left") - 1
    inside = bins >= 0
    gaps = is_correct[inside] - confidence[inside].astype(np.float64)
    return VideoBins(
        count=np.bincount(bins[inside], minlength=NUM_BINS),
        gap=np.bincount(bins[inside], weights=gaps, minlength=NUM_BINS),
        accuracy=float(is_correct.mean()),
        size=len(confidence),
    )


def as_published(videos: Sequence[VideoBins]) -> C3Figures:
    """Figures by C3's code: absolute errors per video, averaged by the number of values."""
    count = np.sum([video.count for video in videos], axis=0)
    error = np.sum([np.abs(video.gap) for video in videos], axis=0)
    in_bins = max(int(count.sum()), 1)
    return C3Figures(
        accuracy=sum(video.accuracy * video.size for video in videos) / in_bins,
        ece=float(error.sum() / in_bins),
        mce=float((error / np.maximum(count, 1)).max()),
    )


def pooled(videos: Sequence[VideoBins]) -> C3Figures:
    """Figures over the values of all videos together."""
    count = np.sum([video.count for video in videos], axis=0)
    error = np.abs(np.sum([video.gap for video in videos], axis=0))
    size = sum(video.size for video in videos)
    return C3Figures(
        accuracy=sum(video.accuracy * video.size for video in videos) / size,
        ece=float(error.sum() / max(int(count.sum()), 1)),
        mce=float((error / np.maximum(count, 1)).max()),
    )


def check_c3(rollouts: Sequence[LoggedRollout], attributes: Mapping[str, Any]) -> None:
    """Raise unless a log holds what C3's evaluation takes.

    Raises:
        ValueError: a rollout restarts, is incomplete or has several cameras, the model is not an
            imported network with confidence, or its confidence is not as stated.
    """
    if any("imagined_latent" not in rollout.signals for rollout in rollouts):
        raise ValueError(
            "`--c3` needs the latents that `worldmodel imagine` logs for imported networks; this "
            "log has none."
        )
    if attributes["confidence"] != "as stated":
        raise ValueError(
            f"`--c3` needs confidence as stated, but that of this log is "
            f"{attributes['confidence']}; imagine with a model folder without `monitor`."
        )
    for rollout in rollouts:
        whole = np.array_equal(rollout.horizon, np.arange(rollout.attributes["num_frames"]))
        if not (rollout.is_closed and whole and len(rollout) > 1):
            raise ValueError(
                f"`--c3` needs rollouts from one frame to the end, but {rollout.name!r} is not: "
                "imagine again with `--start 1` and a `--horizon` of at least "
                f"{max(rollout.attributes['num_frames'] for rollout in rollouts) - 1}."
            )


def write_c3(
    rollouts: Sequence[LoggedRollout], attributes: Mapping[str, Any], folder: Path
) -> dict[float, dict[str, C3Figures]]:
    """Write the arrays and figures of C3's evaluation; returns the figures per error level.

    `folder/videos/<name>/` has C3's file names, for its own scripts; `folder/metrics.json` the
    figures.

    Raises:
        ValueError: as `check_c3`.
    """
    check_c3(rollouts, attributes)
    figures = {}
    with replaced_folder(folder) as partial:
        for level, epsilon in enumerate(EPSILONS):
            published, right = [], []
            for rollout in rollouts:
                truth, made = (theirs(rollout.signals[n]) for n in ("latent", "imagined_latent"))
                stated = theirs(rollout.confidence[..., level].float().numpy())
                stated[0] = 0.0  # C3's confidence of the context
                name = safe_file_name(rollout.name).replace(".", "%2E")
                arrays = {"gt_latents": truth, "generated_latents": made, "raw_conf_pred": stated}
                save_arrays(partial / "videos" / name, arrays, level)
                published.append(compare(stated[:-1], made[:-1], truth[1:], epsilon))
                right.append(compare(stated[1:], made[1:], truth[1:], epsilon))
            figures[epsilon] = {"as_published": as_published(published), "same": pooled(right)}
        record = [
            {"epsilon": epsilon, **{name: asdict(values) for name, values in both.items()}}
            for epsilon, both in figures.items()
        ]
        (partial / "metrics.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return figures


def theirs(
    latents: Shaped[np.ndarray, "time 1 channel h w"],
) -> Float[np.ndarray, "time h w channel"]:
    """Array in C3's axes, in single precision."""
    return rearrange(latents.astype(np.float32), "t 1 c h w -> t h w c")


def save_arrays(folder: Path, arrays: Mapping[str, np.ndarray], level: int) -> None:
    """Write the arrays of one video and error level; the last frame is true only, as in C3's."""
    folder.mkdir(parents=True, exist_ok=True)
    epsilon = float(np.linspace(0.1, 1.0, len(EPSILONS))[level])  # named by C3 with its rounding
    for name, values in arrays.items():
        kept = values if name == "gt_latents" else values[:-1]
        np.save(folder / f"{name}_conf_thresh_{epsilon}.npy", kept)


def compare(
    stated: Float[np.ndarray, "time h w channel"],
    made: Float[np.ndarray, "time h w channel"],
    truth: Float[np.ndarray, "time h w channel"],
    epsilon: float,
) -> VideoBins:
    """Bins of a video whose frames are compared one by one."""
    return video_bins(stated.ravel(), (np.abs(truth - made) <= epsilon).ravel())
