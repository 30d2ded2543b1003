"""Measure a model on held-out episodes and write its certificate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64

from worldmodel.calibration.calibrated import Calibration
from worldmodel.certificate import (
    CalibrationError,
    Certificate,
    Gain,
    Mean,
    Outcomes,
    verified_uses,
)
from worldmodel.checkpoint import fingerprint
from worldmodel.episodes.clips import LatentBatch
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.imagine_clip import imagine_clip
from worldmodel.evaluation.action_controls import (
    inverse_dynamics,
    offset_errors,
    relative_increases,
)
from worldmodel.evaluation.evaluate import LAST_FRAMES
from worldmodel.model import WorldModel
from worldmodel.monitors.reliability.measures import expected_calibration_error
from worldmodel.networks.pixel_confidence import DELTAS, patch_error
from worldmodel.rollouts.open_loop import START, EpisodeRollouts, roll_out_all
from worldmodel.rollouts.picture_confidence import picture_confidence
from worldmodel.rollouts.pictures import pictures
from worldmodel.rollouts.pixel_table import pixel_rows
from worldmodel.rollouts.quality import bootstrap_interval, psnr_per_frame
from worldmodel.rollouts.reliability import count_reliability

HORIZONS = (1, 2, 4, 8, 16, 32)
"""Horizons, in frames, of the gain over copying."""
CALIBRATED = 16
"""Frames per segment of the calibration figures."""


def certify(
    model: WorldModel,
    folder: Path,
    nominal: Sequence[Episode],
    *,
    data: str,
    shifted: Mapping[str, Sequence[Episode]] | None = None,
    calibrated: Calibration | None = None,
) -> Certificate:
    """Measure a model on held-out episodes of one data set, and its confidence on others.

    Args:
        model: The model in `folder`.
        folder: Folder of the checkpoint.
        nominal: Held-out episodes, at least 2.
        data: Name of their data set.
        shifted: Name -> episodes of other data sets, for the calibration alone.
        calibrated: The model's calibration, whose recalibrated confidence is measured; None: the
            confidence as stated.

    Raises:
        ValueError: Fewer than 2 episodes.
    """
    if len(nominal) < 2:
        raise ValueError(f"A certificate needs at least 2 episodes, got {len(nominal)}.")
    batches = [episode.batch for episode in nominal]
    increases = relative_increases(model, batches)
    groups = {data: nominal, **(shifted or {})}
    measured = Certificate(
        model=fingerprint(folder),
        made=datetime.now(UTC).date().isoformat(),
        data=data,
        episodes=len(nominal),
        gains=gains(model, nominal),
        actions={name: _mean(values) for name, values in increases.items()},
        offsets=offset_errors(model, batches),
        inverse_dynamics=inverse_dynamics(model, batches),
        outcomes=outcomes(model, batches),
        off_expert=off_expert(model, batches),
        calibration=[calibration(model, group, name, calibrated) for name, group in groups.items()]
        if model.has_confidence
        else [],
    )
    return replace(measured, uses=verified_uses(measured))


def _mean(values: Float64[np.ndarray, " episode"]) -> Mean:
    low, high = bootstrap_interval(values, np.random.default_rng(0))
    return Mean(value=float(values.mean()), low=low, high=high, n=len(values))


def gains(model: WorldModel, episodes: Sequence[Episode]) -> list[Gain]:
    """Gain of composed pictures over copying the last real frame, from `START` real frames."""
    rollouts = roll_out_all(model, episodes, horizon=max(HORIZONS))
    rows = []
    for horizon in HORIZONS:
        pairs = [
            _psnr(model, episode, rollout, START - 1 + horizon)
            for episode, rollout in zip(episodes, rollouts, strict=True)
            if len(rollout.horizon) >= START + horizon
        ]
        if len(pairs) > 1:
            imagined, copied = np.array(pairs).T
            gain = _mean(imagined - copied)
            mean, copy = float(imagined.mean()), float(copied.mean())
            rows.append(Gain(horizon=horizon, imagined=mean, copied=copy, gain=gain))
    return rows


def _psnr(
    model: WorldModel, episode: Episode, rollout: EpisodeRollouts, frame: int
) -> tuple[float, float]:
    """PSNR of the imagined picture and of the last real frame, over the valid views."""
    shown = pictures(model, episode.frames, rollout, rows=np.array([frame]))[0]
    real, last = episode.frames[frame], episode.frames[START - 1]
    valid = slice(None) if rollout.view_valid is None else rollout.view_valid[frame]
    return (
        float(psnr_per_frame(shown[valid], real[valid]).mean()),
        float(psnr_per_frame(last[valid], real[valid]).mean()),
    )


def from_first_frame(model: WorldModel, batch: LatentBatch) -> torch.Tensor:
    """Latents of a whole episode, imagined from its first frame."""
    return imagine_clip(model, batch, 1, epsilon=()).latents.cpu()


def labelled(batches: Sequence[LatentBatch]) -> list[LatentBatch]:
    """Episodes with a success label of one of the model's tasks."""
    return [
        b
        for b in batches
        if b.success[0, -1].isfinite() and (b.task is None or int(b.task[0]) >= 0)
    ]


@torch.inference_mode()
def outcomes(model: WorldModel, batches: Sequence[LatentBatch]) -> Outcomes | None:
    """Imagined outcomes against true ones; None without a success classifier or labels."""
    if "judge" not in model.config.provenance.get("stages", ()):
        return None
    found, true = [], []
    for batch in labelled(batches):
        last = from_first_frame(model, batch)[:, -LAST_FRAMES:]
        found.append(bool(model.success(last, batch.task).mean() > 0.5))
        true.append(bool(batch.success[0, -1] > 0.5))
    if not true:
        return None
    imagined, truth = np.array(found), np.array(true)
    wrong, right = imagined[~truth], ~imagined[truth]
    return Outcomes(
        failures=len(wrong),
        successes=len(right),
        success_given_failure=float(wrong.mean()) if len(wrong) else None,
        failure_given_success=float(right.mean()) if len(right) else None,
    )


@torch.inference_mode()
def off_expert(model: WorldModel, batches: Sequence[LatentBatch]) -> float | None:
    """Error relative to a copy in failed episodes, divided by that in successful ones."""
    groups: dict[bool, list[float]] = {False: [], True: []}
    for batch in labelled(batches):
        truth = batch.latents[:, 1:].float()
        error = (from_first_frame(model, batch) - truth).square()
        copied = (batch.latents[:, :1].float() - truth).square()
        if batch.view_valid is not None:
            error, copied = (x[batch.view_valid[:, 1:]] for x in (error, copied))
        groups[bool(batch.success[0, -1] > 0.5)].append(
            float((error.mean() / copied.mean()).sqrt())
        )
    if min(map(len, groups.values())) < 2:
        return None
    return float(np.mean(groups[False]) / np.mean(groups[True]))


def calibration(
    model: WorldModel, episodes: Sequence[Episode], name: str, calibrated: Calibration | None
) -> CalibrationError:
    """Calibration errors of both confidences, pooled over horizons."""
    rollouts = roll_out_all(model, episodes, horizon=CALIBRATED)
    shown = rollouts
    if calibrated is not None:
        pairs = zip(episodes, rollouts, strict=True)
        shown = [calibrated.shown(model, episode, rollout) for episode, rollout in pairs]
    names = [str(number) for number in range(len(shown))]
    counted = count_reliability(shown, names=names, horizons=range(1, CALIBRATED + 1))
    pixels = None
    if model.picture_confidence is not None:
        stated, errors = zip(
            *(_patches(model, *pair) for pair in zip(episodes, rollouts, strict=True)), strict=True
        )
        pixels = pixel_rows(stated, errors, DELTAS)
    right = [row.right for row in pixels or () if row.right is not None]
    return CalibrationError(
        data=name,
        episodes=len(episodes),
        ece=float(expected_calibration_error(counted.bins())),
        pixel_ece=max(row.ece for row in pixels) if pixels else None,
        pixel_right=min(right) if right else None,
    )


def _patches(
    model: WorldModel, episode: Episode, rollouts: EpisodeRollouts
) -> tuple[Float[np.ndarray, "patch delta"], Float[np.ndarray, " patch"]]:
    """Confidence and error of every imagined patch of an episode."""
    shown = pictures(model, episode.frames, rollouts)
    stated = picture_confidence(model, episode, rollouts, shown)
    error = patch_error(shown, episode.frames)
    chosen = torch.from_numpy(rollouts.horizon > 0)[:, None].expand(error.shape[:2])
    if rollouts.view_valid is not None:
        chosen = chosen & rollouts.view_valid
    return stated[chosen].flatten(0, 2).numpy(), error[chosen].flatten().numpy()
