"""Which episodes calibrate a model, how well it is calibrated, and where the result is kept."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from worldmodel.calibration.calibrated import (
    WATCH_HORIZON,
    WATCH_START,
    Episode,
    Trust,
    fit_monitor,
    fit_recalibration,
    recalibrated,
)
from worldmodel.calibration.gate import Gate, fit_gate
from worldmodel.calibration.trusted_share import TrustedShare, trusted_shares
from worldmodel.checkpoint import fingerprint
from worldmodel.datasets.dataset import Dataset
from worldmodel.episodes.load import load_named
from worldmodel.model import WorldModel
from worldmodel.monitors.alarm_rule import MonitorConfig
from worldmodel.monitors.guarantees.episode_threshold import episodes_needed, smallest_alpha
from worldmodel.monitors.reliability.counts import CalibrationSummary, summarize
from worldmodel.monitors.reliability.measures import ReliabilityBins
from worldmodel.monitors.validity import Artefact, staleness
from worldmodel.rollouts.open_loop import (
    START,
    EpisodeRollouts,
    Forecasts,
    count_reliability,
    roll_out,
)
from worldmodel.runtime.watch import unstretched

LOG = logging.getLogger(__name__)
HORIZONS = (1, 4, 8, 16)
"""Frames ahead at which calibration is reported."""
MAX_REFERENCE = 200
"""Reference episodes used of a larger data set, evenly spaced: rare colours need many."""
GATE_REFERENCE = 60
"""About so many of them are imagined for the gate, which looks at confidence alone."""
BATCH = 32
"""Episodes imagined at once."""
RECORD = "calibration.json"
"""What was calibrated on what, beside the monitor's own files."""


def trained_on(model: WorldModel, dataset: Dataset) -> frozenset[str]:
    """Ids of the episodes of a data set that some part of the model was trained on.

    The training store is known by its name, and what it was converted from by its path. A head may
    have learned from other episodes than the model it was put on.
    """
    seen: set[str] = set()
    provenance = model.config.provenance
    while provenance:
        source = provenance.get("data_attributes", {}).get("source", {})
        names = {provenance.get("data"), source.get("path")}
        if dataset.path.resolve().name in names or str(dataset.path.resolve()) in names:
            seen |= {*provenance["split"]["dynamics"], *provenance["split"]["confidence"]}
        provenance = provenance.get("starts_from", {})
    return frozenset(seen)


def long_enough(dataset: Dataset, names: Sequence[str], *, start: int = START) -> list[str]:
    """The episodes that leave something to imagine after the first `start` frames.

    Raises:
        ValueError: if there are none.
    """
    kept = [name for name in names if dataset.summary(name).num_frames > start]
    if names and not kept:
        raise ValueError(
            f"No episode of {dataset.path} has more than {start} frames: nothing to imagine."
        )
    if len(kept) < len(names):
        LOG.warning(
            "note: %d episodes of %s have %d frames or fewer and are left out.",
            len(names) - len(kept), dataset.path, start,
        )  # fmt: skip
    return kept


def note_seen(model: WorldModel, dataset: Dataset, names: Sequence[str], monitor: Path) -> None:
    """Warn if the model or its monitor knows some of the episodes."""
    record = read_record(monitor)
    fitted = {
        name
        for part, data in (("calibration", "data"), ("reference", "reference_data"))
        if Path(record.get(data, "")).name == dataset.path.name
        for name in record[part]
    }
    for seen, purpose in ((trained_on(model, dataset), "train"), (fitted, "calibrate")):
        if count := len(seen & set(names)):
            LOG.warning(
                "note: %d of these %d episodes helped to %s the model; on them it looks better.",
                count, len(names), purpose,
            )  # fmt: skip


def untouched_episodes(model: WorldModel, dataset: Dataset) -> list[str]:
    """Ids of the episodes that no part of the model was trained on.

    Raises:
        ValueError: if there are none.
    """
    seen = trained_on(model, dataset)
    names = long_enough(dataset, [name for name in dataset.episode_ids if name not in seen])
    if not names:
        raise ValueError(
            f"{dataset.path} holds no episode that the model was not trained on; calibrate on "
            "other episodes."
        )
    return names


def reference_episodes(model: WorldModel, dataset: Dataset) -> list[str]:
    """Ids of episodes that count as familiar: those the dynamics learned from, else all."""
    names = list(dataset.episode_ids)
    if trained_on(model, dataset):
        learned = set(model.config.provenance["split"]["dynamics"])
        names = [name for name in names if name in learned]
    names = long_enough(dataset, names)
    chosen = np.linspace(0, len(names) - 1, min(len(names), MAX_REFERENCE)).round().astype(int)
    return [names[i] for i in chosen]


@dataclass(frozen=True)
class Plan:
    """Which episodes set the thresholds, and which count as familiar."""

    data: Dataset
    calibration: Sequence[str]
    reference_data: Dataset
    reference: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.reference) < 2:
            raise ValueError(
                "The monitor needs at least 2 familiar episodes to compare with; "
                f"{self.reference_data.path} gives {len(self.reference)}."
            )


def plan_calibration(model: WorldModel, data: Dataset, reference: Dataset | None = None) -> Plan:
    """Choose episodes so that no threshold rests on one that the model, or a channel, has seen.

    Raises:
        ValueError: if too few are left, or an episode would be on both sides.
    """
    names = untouched_episodes(model, data)
    if reference is None and trained_on(model, data):
        reference = data
    if reference is None:
        return Plan(data, names[1::2], data, names[::2])
    familiar = reference_episodes(model, reference)
    same = reference.path.resolve() == data.path.resolve()
    if same and set(familiar) & set(names):
        raise ValueError(
            "`reference` must hold other episodes than `data`; without it, every second episode "
            "counts as familiar."
        )
    return Plan(data, names, reference, familiar)


def monitor_config(
    num_episodes: int, alpha: float | None, delta: float | None = None
) -> MonitorConfig:
    """Alarm rates for so many calibration episodes.

    Args:
        num_episodes: Calibration episodes.
        alpha: Chance of any alarm in a nominal episode; None is 0.05, or the least they support.
        delta: Share of calibration sets that may give a higher chance than that; None: it is kept
            on average over them.

    Raises:
        ValueError: if they do not support `alpha`.
    """
    asked = MonitorConfig(delta=delta).alpha_notice if alpha is None else alpha
    needed = episodes_needed(asked, delta)
    supported = MonitorConfig.for_episodes(num_episodes, delta=delta)
    if alpha is None:
        return supported
    if num_episodes < needed:
        promise = f"`alpha`={alpha:g}" + ("" if delta is None else f" with `delta`={delta:g}")
        raise ValueError(
            f"{promise} needs {needed} calibration episodes, got {num_episodes}, which support "
            f"{smallest_alpha(num_episodes, delta):.3g} at best."
        )
    return replace(
        supported,
        alpha_notice=alpha,
        alpha_degrade=min(alpha, supported.alpha_degrade),
        alpha_stop=min(alpha, supported.alpha_stop),
    )


def roll_out_all(
    model: WorldModel, episodes: Sequence[Episode], *, horizon: int, start: int = START
) -> list[EpisodeRollouts]:
    """`roll_out` over any number of episodes, with a progress bar."""
    rollouts: list[EpisodeRollouts] = []
    with tqdm(total=len(episodes), desc="imagine", unit="episode") as bar:
        for first in range(0, len(episodes), BATCH):
            batch = [episode.batch for episode in episodes[first : first + BATCH]]
            rollouts += roll_out(model, batch, start=start, horizon=horizon, seed=first)
            bar.update(len(batch))
    return rollouts


def cross_fitted(
    rollouts: Sequence[EpisodeRollouts], *, method: str = "isotonic"
) -> list[EpisodeRollouts]:
    """Every rollout, recalibrated by curves fitted on the other half of the episodes.

    Raises:
        ValueError: if there is only one.
    """
    if len(rollouts) < 2:
        raise ValueError("`rollouts` needs at least 2 episodes: one half recalibrates the other.")
    curves = [fit_recalibration(rollouts[1 - half :: 2], method=method) for half in (0, 1)]
    return [recalibrated(rollout, curves[i % 2]) for i, rollout in enumerate(rollouts)]


def calibration_table(
    rollouts: Sequence[Forecasts], *, horizons: Sequence[int] = HORIZONS, seed: int = 0
) -> dict[int, CalibrationSummary]:
    """Horizon -> how well confidence at every error level held there; unreached ones left out.

    `seed` draws the episodes of the intervals.
    """
    names = [str(number) for number in range(len(rollouts))]
    reliability = count_reliability(rollouts, names=names, horizons=horizons)
    table = {}
    for horizon in horizons:
        if not any(horizon in rollout.horizon for rollout in rollouts):
            continue
        sums = reliability.episode_bins(horizon=horizon).sums
        reached = ReliabilityBins(sums[sums[:, 0].sum(axis=-1) > 0])
        table[horizon] = summarize(reached, rng=np.random.default_rng(seed))
    return table


@dataclass(frozen=True)
class Calibrated:
    """What calibration learned, and how well the confidence held."""

    trust: Trust
    gate: Gate
    tables: dict[str, dict[int, CalibrationSummary]]
    """"as stated" and, with two or more episodes, "recalibrated" (cross-fitted): per horizon."""
    trusted: list[TrustedShare]
    """One per share of `RISKS`."""


def calibrate(
    model: WorldModel,
    plan: Plan,
    *,
    config: MonitorConfig,
    horizon: int,
    method: str = "isotonic",
    artefact: Artefact | None = None,
) -> Calibrated:
    """Fit monitor, recalibration (of the kind `method`) and gate to the episodes of a plan.

    `artefact` says what hash the model has, and how long the calibration is good; None: for ever.

    Raises:
        ValueError: frames of other proportions than the model's, at which the monitor would stop.
    """
    calibration = load_named(model, plan.data, plan.calibration)
    if unstretched(calibration[0]) is not calibration[0].frames:
        raise ValueError(
            f"Frames of {plan.data.path} have other proportions than the model's, so the monitor "
            "would stop at every one; calibrate on frames like those it was trained on."
        )
    familiar = load_named(model, plan.reference_data, plan.reference)
    rollouts = roll_out_all(model, calibration, horizon=horizon)
    ahead = min(horizon, WATCH_HORIZON)
    claims = partial(roll_out_all, model, horizon=ahead, start=WATCH_START)
    monitor = fit_monitor(
        model,
        list(zip(calibration, claims(calibration), strict=True)),
        list(zip(familiar, claims(familiar), strict=True)),
        config=config,
        artefact=artefact,
    )
    trust = Trust(monitor, fit_recalibration(rollouts, method=method), horizon, ahead)
    tables = {"as stated": calibration_table(rollouts)}
    if len(rollouts) > 1:
        tables["recalibrated"] = calibration_table(cross_fitted(rollouts, method=method))
    gate = fit_gate(
        model,
        [e.batch for e in calibration],
        [e.batch for e in familiar[:: max(1, len(familiar) // GATE_REFERENCE)]],
        artefact=trust.monitor.artefact_,
    )
    return Calibrated(trust, gate, tables, trusted_shares(rollouts))


def check_target(folder: Path) -> None:
    """Refuse to replace anything but a monitor."""
    if folder.is_file() or (
        folder.is_dir() and any(folder.iterdir()) and not (folder / "monitor.json").is_file()
    ):
        raise ValueError(f"{folder} holds something that is no monitor; give another folder.")


def save_trust(trust: Trust, gate: Gate, folder: Path, record: dict[str, Any]) -> None:
    """Write monitor, recalibration, gate and `record`, in place of earlier ones when whole."""
    check_target(folder)
    part = folder.with_name(folder.name + ".partial")
    shutil.rmtree(part, ignore_errors=True)
    try:
        trust.save(part)
        gate.save(part / "gate")
        (part / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    except BaseException:  # Ctrl-C too: nothing half-written is left
        shutil.rmtree(part, ignore_errors=True)
        raise
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_trust(model: WorldModel, checkpoint: Path, monitor: Path | None = None) -> Trust:
    """What `worldmodel calibrate` made for a checkpoint; warns if it has gone stale since.

    Raises:
        OSError: nothing there.
        ValueError: a file is corrupt, or made for other weights, actions or frames.
    """
    folder, model_hash = monitor or checkpoint / "monitor", fingerprint(checkpoint)
    trust = Trust.load(folder, model, model_hash=model_hash)
    made_for = Artefact(model_hash=read_record(folder).get("model"))  # of monitors of format 1
    made_for.check_fits(str(folder), Artefact(model_hash=model_hash))
    expected = (model.config.dynamics.views, *model.config.image_size, 3)
    if trust.monitor.frame_shape_ != expected:
        raise ValueError(
            f"The monitor in {folder} was made for frames of shape {trust.monitor.frame_shape_}, "
            f"the model makes {expected}; calibrate it for this model."
        )
    if found := staleness(trust.monitor.artefact_, trust.monitor.today()):
        LOG.warning("note: the monitor in %s is stale: %s", folder, found.note)
    return trust


def read_record(monitor: Path) -> dict[str, Any]:
    """What `worldmodel calibrate` says of its run; nothing for a monitor made in another way."""
    file = monitor / RECORD
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text()))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); calibrate again.") from error
