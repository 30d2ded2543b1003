"""Open-loop rollouts of recorded episodes in the world model, logged step by step.

To continue an interrupted run, start it again with the same arguments.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.cli._device import AUTOMATIC, Networks

if TYPE_CHECKING:
    from worldmodel.calibration.calibrated import Calibration
    from worldmodel.datasets.dataset import Dataset
    from worldmodel.datasets.rollout_log import RolloutLog
    from worldmodel.episodes.episode import Episode
    from worldmodel.model import WorldModel
    from worldmodel.networks.sampler import Sampling
    from worldmodel.rollouts.log import LoggedRollout
    from worldmodel.rollouts.open_loop import EpisodeRollouts

HORIZONS = (1, 4, 5, 8, 10, 16)
"""Horizons (frames ahead) in the printed table."""
SEED_STRIDE = 10_000
"""Seeds reserved per episode: its segments use the first half, the uncertainty split the second."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of `worldmodel imagine`."""

    model: str
    """Folder of a checkpoint, or the name of a shipped one ("tabletop")."""
    data: Path
    """Dataset folder in any format that `worldmodel data info` reads."""
    out: Path
    """Rollout log to write (.zarr): a new folder, or that of an interrupted run."""
    only: str | None = None
    """Shell pattern of episode names, such as "val/*"; None: all."""
    episodes: int | None = None
    """Use only this many episodes, from the first; None: all."""
    start: int = 4
    """Real frames before the first imagined frame."""
    horizon: int = 16
    """Imagined frames per segment, before the rollout restarts from real frames."""
    seed: int = 0
    """Seed; a rollout depends only on it and on the index of its episode in the data."""
    num_steps: int | None = None
    """Sampler steps per frame; None: the checkpoint's own."""
    method: str | None = None
    """Sampler: "euler", "heun" (twice the cost per step) or "ddim"; None: the checkpoint's own."""
    eta: float | None = None
    """Share of fresh noise in each sampler step, from 0 to 1; None: the checkpoint's own."""
    guidance: float | None = None
    """Guidance weight of the actions: 1 is plain sampling; above 1, frames follow the actions more
    closely at twice the cost; None: the checkpoint's own."""
    monitor: Path | None = None
    """Monitor folder with the recalibration; None: `monitor` in the checkpoint, if it exists."""
    decompose: bool = False
    """Split the uncertainty of each episode's first segment into an aleatoric part (left open by
    the intent) and an epistemic part (unknown to the model); 24 more rollouts per episode."""
    width: float = 0.2
    """With `decompose`: spread of the intent's actions around the recorded ones, in standard
    deviations of the training actions."""
    pictures: str = "composed"
    """"composed" with the last real frame: what did not change looks as it did; or "decoded"."""
    skip_bad: bool = False
    """Leave out episodes that cannot be read, and name them; default: stop at the first. Decodes
    every episode once more, beforehand."""
    json: bool = False
    """Print the result as JSON."""
    networks: Networks = AUTOMATIC


def run(command: Command) -> int:
    """Log the missing rollouts, then print the quality of all logged rollouts."""
    from worldmodel.calibration.calibrated import load_calibration
    from worldmodel.calibration.choose_episodes import long_enough, warn_if_seen
    from worldmodel.certificate import log_certificate
    from worldmodel.checkpoint import check_trained, checkpoint_folder, recover_folder
    from worldmodel.datasets.rollout_log import RolloutLog
    from worldmodel.episodes.load import open_for, select_episodes
    from worldmodel.episodes.usable import usable_episodes
    from worldmodel.model import WorldModel
    from worldmodel.rollouts.log import open_log, read_rollouts, steps, write_rollout
    from worldmodel.rollouts.picture_kinds import check_kind

    check_kind(command.pictures)
    if command.start < 1 or command.horizon < 1 or command.seed < 0:
        raise ValueError("`--start` and `--horizon` must be at least 1, `--seed` at least 0.")
    folder = checkpoint_folder(command.model)
    log_certificate(folder)
    model = WorldModel.load(folder, **command.networks.placement)
    if not model.has_confidence and "imported" in model.config.provenance:
        print(
            "note: the model has no confidence: rollouts are logged without. To train a confidence "
            f"head on your episodes: `worldmodel train --stage confidence --model {folder}`.",
            file=sys.stderr,
        )
    else:
        check_trained(model.config.provenance, folder, "confidence")
    sampling = choose_sampling(command, model)
    monitor = command.monitor or folder / "monitor"
    recover_folder(monitor)
    has_trust = command.monitor is not None or monitor.exists()
    calibration = load_calibration(model, folder, monitor) if has_trust else None
    dataset = open_for(model, command.data)
    chosen = select_episodes(dataset, only=command.only, limit=command.episodes)
    names, left_out = usable_episodes(model, dataset, chosen, skip_bad=command.skip_bad)
    names = long_enough(dataset, names, start=command.start)
    own_monitor = monitor if calibration else None
    attributes = attributes_of(command, model, folder, own_monitor, sampling)
    log = open_log(command.out, attributes)
    missing = names if log is None else missing_rollouts(log, names)
    warn_if_seen(model, dataset, names, monitor)
    made = imagine_episodes(command, model, calibration, dataset, missing, sampling)
    for episode, rollouts, more in made:
        log = log or RolloutLog.create(command.out, attributes=attributes)
        rows = steps(model, episode, rollouts, kind=command.pictures)
        write_rollout(log, episode.name, rows, dataset.summary(episode.name), more)
    assert log is not None
    print_result(command, read_rollouts(log), left_out, is_recalibrated=calibration is not None)
    return 0


def attributes_of(
    command: Command, model: WorldModel, folder: Path, monitor: Path | None, sampling: Sampling
) -> dict[str, Any]:
    """Attributes of the log; a run that continues it must have the same."""
    from worldmodel.calibration.calibrated import read_record
    from worldmodel.rollouts.decomposition import Intent
    from worldmodel.rollouts.log import log_attributes

    common = log_attributes(
        model, command="imagine", checkpoint=folder, monitor=monitor, data=command.data,
        kind=command.pictures,
    )  # fmt: skip
    if monitor is not None:
        common["calibrated_dtype"] = read_record(monitor).dtype
    return {
        **common,
        "start": command.start,
        "horizon": command.horizon,
        "seed": command.seed,
        "sampling": asdict(sampling),
        "intent": asdict(Intent(width=command.width)) if command.decompose else None,
    }


def choose_sampling(command: Command, model: WorldModel) -> Sampling:
    """Sampler of the checkpoint with the requested changes; notes what they invalidate."""
    own = model.sampling
    given: dict[str, Any] = {
        "num_steps": command.num_steps,
        "method": command.method,
        "eta": command.eta,
        "guidance": command.guidance,
    }
    sampling = replace(own, **{name: value for name, value in given.items() if value is not None})
    if sampling != own:
        print(
            "note: confidence was trained and calibrated for the checkpoint's own sampler "
            f"({own.num_steps} x {own.method}); with another one its calibration is void.",
            file=sys.stderr,
        )
    dropout = model.config.provenance.get("recipe", {}).get("action_dropout")
    if "imported" in model.config.provenance:
        dropout = own.guidance != 1  # as its publication samples it
    if sampling.guidance != 1 and not dropout:
        print(
            "note: the checkpoint was trained without action dropout and cannot predict without an "
            "action; guidance is unreliable.",
            file=sys.stderr,
        )
    return sampling


def missing_rollouts(log: RolloutLog, names: Sequence[str]) -> list[str]:
    """Episodes without a complete rollout in the log; prints what is kept and continued."""
    begun = set(log.rollouts())
    closed = {name for name in begun if log.is_closed(name)}
    print(
        f"note: {log.path} already holds {len(closed)} complete rollouts; they are kept.",
        file=sys.stderr,
    )
    for name in sorted((begun - closed) & set(names)):
        written = len(log.read(name).get("horizon", ()))
        print(
            f"note: rollout {name!r} is incomplete and continues after frame {written}.",
            file=sys.stderr,
        )
    return [name for name in names if name not in closed]


def imagine_episodes(
    command: Command,
    model: WorldModel,
    calibration: Calibration | None,
    dataset: Dataset,
    names: Sequence[str],
    sampling: Sampling,
) -> Iterator[tuple[Episode, EpisodeRollouts, dict[str, Any]]]:
    """Load and imagine episodes one by one, and split their uncertainty if requested."""
    from tqdm import tqdm

    from worldmodel.episodes.load import choose_cameras, load_by_name
    from worldmodel.rollouts.decomposition import Intent, decompose_rollout
    from worldmodel.rollouts.open_loop import roll_out

    cameras = choose_cameras(model, dataset)
    with tqdm(names, "imagine", unit="episode") as bar:
        for name in bar:
            episode = load_by_name(model, dataset, name, cameras)
            seed = command.seed + SEED_STRIDE * dataset.episode_ids.index(name)
            (rollouts,) = roll_out(
                model, [episode.batch], start=command.start, horizon=command.horizon, seed=seed,
                sampling=sampling,
            )  # fmt: skip
            more = {}
            if command.decompose:
                parts = decompose_rollout(
                    model, episode.batch, Intent(width=command.width),
                    start=command.start, horizon=command.horizon, seed=seed + SEED_STRIDE // 2,
                    sampling=sampling,
                )  # fmt: skip
                more["decomposition"] = asdict(parts)
            shown = calibration.shown(model, episode, rollouts) if calibration else rollouts
            yield episode, shown, more


def print_result(
    command: Command,
    rollouts: Sequence[LoggedRollout],
    left_out: dict[str, str],
    *,
    is_recalibrated: bool,
) -> None:
    """Print the PSNR of imagined frames and the calibration of their confidence, per horizon."""
    from worldmodel.report.format import with_interval
    from worldmodel.report.html import Table
    from worldmodel.rollouts.picture_kinds import KINDS
    from worldmodel.rollouts.quality import psnr_table
    from worldmodel.rollouts.reliability import calibration_table

    psnr = psnr_table(rollouts, HORIZONS)
    has_confidence = any(rollout.has_confidence for rollout in rollouts)
    calibration = calibration_table(rollouts, horizons=list(psnr)) if has_confidence else {}
    if command.json:
        stated = {h: calibration[h].as_dict() if calibration else {} for h in psnr}
        table = [{"horizon": h, **asdict(psnr[h]), **stated[h]} for h in psnr]
        facts = {"log": str(command.out), "rollouts": len(rollouts), "left_out": left_out}
        facts |= {"recalibrated": is_recalibrated, "pictures": command.pictures, "table": table}
        print(json.dumps(facts | (split_facts(rollouts) if command.decompose else {})))
        return
    rows = [
        (
            str(h),
            psnr[h].num_episodes,
            f"{psnr[h].imagined_db:.1f}",
            f"{psnr[h].copy_db:.1f}",
            with_interval(psnr[h].gain_db, psnr[h].gain_interval, "+.1f"),
            with_interval(calibration[h].ece, calibration[h].ece_interval, ".3f")
            if calibration
            else "-",
        )
        for h in psnr
    ]
    caption = (
        f"{len(rollouts)} rollouts in {command.out}. Mean PSNR in dB of the pictures, "
        f"{KINDS[command.pictures]}, its gain over the baseline that copies the last frame, and "
        "the pooled ECE of the "
        f"confidence{', recalibrated for familiar frames' if is_recalibrated else ' as stated'}, "
        "with 95% intervals over resampled episodes."
    )
    columns = ["horizon", "episodes", "imagined", "copy last frame", "gain", "pooled ECE"]
    print(Table(caption=caption, columns=columns, rows=rows).to_text())
    if command.decompose:
        print_split(split_facts(rollouts))


def split_facts(rollouts: Sequence[LoggedRollout]) -> dict[str, Any]:
    """Uncertainty parts of each rollout, and the rank correlation of each part with the error."""
    from worldmodel.rollouts.decomposition import agreement, first_error

    rows = [
        {"episode": r.name, "error": first_error(r), **r.attributes["decomposition"]}
        for r in rollouts
        if r.is_closed
    ]
    return {"decomposition": rows, "kendall_tau": agreement(rows)}


def print_split(facts: dict[str, Any]) -> None:
    """Print the decomposition of uncertainty as a table."""
    from worldmodel.report.format import with_interval
    from worldmodel.report.html import Table

    taus, rows = facts["kendall_tau"], facts["decomposition"]
    cells: list[tuple[str | float | None, ...]] = [
        (
            row["episode"],
            row["error"],
            *(with_interval(row[part], row[f"{part}_interval"], ".1f") for part in taus),
        )
        for row in rows
    ]
    ends = (tau and with_interval(tau[0], tau[1], "+.2f") for tau in taus.values())
    cells.append(("Kendall's tau with the error", "", *ends))
    caption = (
        f"Uncertainty of the first rollout of {len(rows)} episodes, in nats, from "
        f"{rows[0]['num_sequences']} action sequences of {rows[0]['num_seeds']} seeds each, with "
        "95% intervals over resampled sequences (tau: over episodes). Error: mean absolute error "
        "in latent standard deviations."
    )
    print(Table(caption=caption, columns=["episode", "error", *taus], rows=cells).to_text())
