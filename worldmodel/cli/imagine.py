"""Roll recorded episodes out in the world model and log them, step by step.

A run that was killed continues where it stopped when started again with the same arguments.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
"""Frames ahead that are printed."""
SEED_STRIDE = 10_000
"""Seeds set aside for each episode: each stretch of it takes one of the first half, splitting its
uncertainty those of the second."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Which model, which episodes, how far."""

    model: str
    """Folder of a checkpoint, or the name of a shipped one ("tabletop")."""
    data: Path
    """Episodes, in any form that `worldmodel data info` reads."""
    out: Path
    """Rollout log to write (.zarr): a new folder, or that of a stopped run of this command."""
    only: str | None = None
    """Shell pattern of the episodes' names, such as "val/*"; None: all."""
    episodes: int | None = None
    """Number of episodes, the first ones; None: all."""
    start: int = 4
    """Real frames before the first imagined one."""
    horizon: int = 16
    """Frames imagined before the rollout starts from real frames again."""
    seed: int = 0
    """Seed; a rollout depends on it and its episode's place in the data, on no other episode."""
    num_steps: int | None = None
    """Sampler steps per frame; None: the checkpoint's own."""
    method: str | None = None
    """Sampler: "euler", "heun" (twice the work per step) or "ddim"; None: the checkpoint's own."""
    eta: float | None = None
    """Share of noise renewed at each sampler step, from 0 to 1; None: the checkpoint's own."""
    guidance: float | None = None
    """Weight of the actions: 1 is plain sampling, more follows them more closely at twice the work;
    None: the checkpoint's own."""
    monitor: Path | None = None
    """Folder whose recalibration is used; None: `monitor` in the checkpoint, if it is there."""
    decompose: bool = False
    """Also split the uncertainty of the first rollout of every episode into what its intent leaves
    open (aleatoric) and what the model does not know (epistemic): 24 more rollouts per episode."""
    width: float = 0.2
    """With `decompose`: how far actions of the intent stray from the recorded ones, in standard
    deviations of the training actions."""
    json: bool = False
    """Print the result as JSON."""


def run(command: Command) -> int:
    """Log what is missing, then print how good all logged rollouts are."""
    from worldmodel.calibration.calibrated import load_calibration
    from worldmodel.calibration.choose_episodes import long_enough, warn_if_seen
    from worldmodel.checkpoint import check_trained, checkpoint_folder
    from worldmodel.datasets.rollout_log import RolloutLog
    from worldmodel.episodes.load import open_for, select_episodes
    from worldmodel.model import WorldModel
    from worldmodel.rollouts.log import open_log, read_rollouts, steps, write_rollout

    if command.start < 1 or command.horizon < 1 or command.seed < 0:
        raise ValueError("`--start` and `--horizon` must be at least 1, `--seed` at least 0.")
    folder = checkpoint_folder(command.model)
    model = WorldModel.load(folder)
    check_trained(model.config.provenance, folder, "confidence")
    sampling = choose_sampling(command, model)
    monitor = command.monitor or folder / "monitor"
    has_trust = command.monitor is not None or monitor.exists()
    calibration = load_calibration(model, folder, monitor) if has_trust else None
    dataset = open_for(model, command.data)
    names = select_episodes(dataset, only=command.only, limit=command.episodes)
    names = long_enough(dataset, names, start=command.start)
    own_monitor = monitor if calibration else None
    attributes = attributes_of(command, model, folder, own_monitor, sampling)
    log = open_log(command.out, attributes)
    missing = names if log is None else missing_rollouts(log, names)
    warn_if_seen(model, dataset, names, monitor)
    made = imagine_episodes(command, model, calibration, dataset, missing, sampling)
    for episode, rollouts, more in made:
        log = log or RolloutLog.create(command.out, attributes=attributes)
        rows = steps(model, episode, rollouts)
        write_rollout(log, episode.name, rows, dataset.summary(episode.name), more)
    assert log is not None
    print_result(command, read_rollouts(log), is_recalibrated=calibration is not None)
    return 0


def attributes_of(
    command: Command, model: WorldModel, folder: Path, monitor: Path | None, sampling: Sampling
) -> dict[str, Any]:
    """What the log says of this run; a run that goes on with it must say the same."""
    from worldmodel.rollouts.decomposition import Intent
    from worldmodel.rollouts.log import log_attributes

    common = log_attributes(
        model, command="imagine", checkpoint=folder, monitor=monitor, data=command.data
    )
    return {
        **common,
        "start": command.start,
        "horizon": command.horizon,
        "seed": command.seed,
        "sampling": asdict(sampling),
        "intent": asdict(Intent(width=command.width)) if command.decompose else None,
    }


def choose_sampling(command: Command, model: WorldModel) -> Sampling:
    """The checkpoint's own sampler, changed as asked; says what that costs in trust."""
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
            "note: confidence was trained, and its calibration made, for the checkpoint's own "
            f"sampler ({own.num_steps} x {own.method}); of another it promises nothing.",
            file=sys.stderr,
        )
    if sampling.guidance != 1 and not model.config.provenance.get("recipe", {}).get(
        "action_dropout"
    ):
        print(
            "note: the checkpoint was trained without action dropout, so it never learned to "
            "predict without an action; guidance is then a guess.",
            file=sys.stderr,
        )
    return sampling


def missing_rollouts(log: RolloutLog, names: Sequence[str]) -> list[str]:
    """Episodes that are not in the log, or whose writer was killed; says so."""
    begun = set(log.rollouts())
    closed = {name for name in begun if log.is_closed(name)}
    print(
        f"note: {log.path} holds {len(closed)} whole rollouts already; they are kept.",
        file=sys.stderr,
    )
    for name in sorted((begun - closed) & set(names)):
        written = len(log.read(name).get("horizon", ()))
        print(
            f"note: rollout {name!r} was cut off and goes on after frame {written}.",
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
    """Load and imagine one episode after the other, with what is asked about its uncertainty."""
    from tqdm import tqdm

    from worldmodel.episodes.load import choose_cameras, load_episode
    from worldmodel.rollouts.decomposition import Intent, decompose_rollout
    from worldmodel.rollouts.open_loop import roll_out
    from worldmodel.rollouts.recalibrate import recalibrated

    cameras = choose_cameras(model, dataset)
    with tqdm(names, "imagine", unit="episode") as bar:
        for name in bar:
            episode = load_episode(model, dataset.episode(name), cameras)
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
            curves = calibration.recalibration if calibration else None
            yield episode, recalibrated(rollouts, curves) if curves else rollouts, more


def print_result(
    command: Command, rollouts: Sequence[LoggedRollout], *, is_recalibrated: bool
) -> None:
    """Print the PSNR of imagined frames and the calibration of their confidence, per horizon."""
    from worldmodel.report.format import with_interval
    from worldmodel.report.html import Table
    from worldmodel.rollouts.quality import psnr_table
    from worldmodel.rollouts.reliability import calibration_table

    psnr = psnr_table(rollouts, HORIZONS)
    calibration = calibration_table(rollouts, horizons=list(psnr))
    if command.json:
        table = [{"horizon": h, **asdict(psnr[h]), **calibration[h].as_dict()} for h in psnr]
        facts = {"log": str(command.out), "rollouts": len(rollouts)}
        facts |= {"recalibrated": is_recalibrated, "table": table}
        print(json.dumps(facts | (split_facts(rollouts) if command.decompose else {})))
        return
    rows = [
        (
            str(h),
            psnr[h].num_episodes,
            f"{psnr[h].imagined_db:.1f}",
            f"{psnr[h].copy_db:.1f}",
            with_interval(psnr[h].gain_db, psnr[h].gain_interval, "+.1f"),
            with_interval(calibration[h].ece, calibration[h].ece_interval, ".3f"),
        )
        for h in psnr
    ]
    caption = (
        f"{len(rollouts)} rollouts in {command.out}. Mean PSNR in dB, its gain over the baseline "
        "that copies the last frame, and the pooled ECE of the "
        f"{'recalibrated' if is_recalibrated else 'uncalibrated'} confidence, with 95% intervals "
        "over resampled episodes."
    )
    columns = ["horizon", "episodes", "imagined", "copy last frame", "gain", "pooled ECE"]
    print(Table(caption=caption, columns=columns, rows=rows).to_text())
    if command.decompose:
        print_split(split_facts(rollouts))


def split_facts(rollouts: Sequence[LoggedRollout]) -> dict[str, Any]:
    """Every rollout's uncertainty in parts, and how each part goes with the rollouts' errors."""
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
