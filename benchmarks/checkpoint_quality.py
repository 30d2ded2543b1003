"""Measure a calibrated checkpoint on many held-out episodes and write its model card.

    python -m benchmarks.checkpoint_quality --model runs/tabletop/model --seed 9100003 --card

Computes the tables of `worldmodel demo` with more episodes and another seed. Take a seed that no
figure was looked at before (benchmarks/results/looks.md), and enter it there.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.provenance import git_commit, hardware, note_if_looked_at, today, versions
from worldmodel.calibration.calibrated import Checkpoint
from worldmodel.checkpoint import checkpoint_folder
from worldmodel.demo import DemoResult, run_demo
from worldmodel.demo_config import DemoConfig
from worldmodel.model import WorldModel
from worldmodel.report.demo_page import false_alarms, tables

CARD = """# {name}

An action-conditioned latent video world model of the embedded tabletop (`{task}`), with a
confidence head, runtime monitor, gate and success classifiers. {parameters:,} parameters.

## Trained on

{data}: {episodes} simulated episodes of the nominal scene under the training mixture of scripted
policies, renderer `{renderer}`, MuJoCo {mujoco}. Tokenizer and dynamics were trained on {dynamics}
of them, the confidence head on rollouts over {confidence} others. Monitor and recalibration:
{calibration} further episodes, seed {calibration_seed}.

## Training

`make checkpoint` (recipes/tabletop.sh), preset `{preset}`: {steps}. One seed (0), one run. The
learning-rate schedules of tokenizer and dynamics were shortened during the run. The confidence head
was trained last, on the finished dynamics (`worldmodel train --stage confidence`), half on episodes
with corrupted frames. About 100 minutes on 2 shared CPU cores, PyTorch {torch}, CPU only. Measured
with the code of commit {commit}.

More training steps would help: the loss was still falling. With a GPU, finer latents, larger images
and several sampler steps per frame would be affordable.

## Results

Held-out episodes of seed {seed}, {date}, {nominal} nominal, {shifted} per factor and severity,
{rollouts} per policy: `python -m benchmarks.checkpoint_quality --nominal {nominal} --shifted
{shifted} --rollouts {rollouts} --seed {seed} --card`. Every value has its n or its interval; every
factor and severity has its own scenes. The confidence is recalibrated where a rollout starts from a
frame that looks familiar to the monitor, and as stated elsewhere: the one that `imagine`, `watch`
and their reports show. Rows "before recalibration" are for comparison.

{tables}

{false_alarms}

## Limits

Simulation only; no claim about real robots. One task, at 64x64 pixels. Small objects blur in long
rollouts, and grasps are not always resolved: do not rely on the imagined success of a single
episode. Calibration under shifts is pooled over severities; it guarantees nothing for a single
shift. The monitor often misses the weakest clutter and the weakest change of the end effector;
docs/monitor.md lists what else it detects and misses.
"""


def main() -> None:
    """Measure, print and, with `--card`, write README.md into the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tabletop")
    parser.add_argument("--nominal", type=int, default=80)
    parser.add_argument("--shifted", type=int, default=20)
    parser.add_argument("--rollouts", type=int, default=24)
    parser.add_argument("--seed", type=int, required=True, help="a seed never looked at before")
    parser.add_argument("--card", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    config = DemoConfig(
        model=arguments.model,
        nominal=arguments.nominal,
        shifted=arguments.shifted,
        rollouts=arguments.rollouts,
        seed=arguments.seed,
    )
    note_if_looked_at(config.seed)
    checkpoint = Checkpoint.load(config.model, stages=("confidence", "judge"))
    result = run_demo(checkpoint, config)
    print(f"{hardware()}, {versions('torch')}, {config}")
    for table in tables(result, checkpoint.model.config.rate_hz):
        print(f"\n{table.to_text()}")
    print(f"\n{false_alarms(result)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result.as_dict(), indent=1), encoding="utf-8")
    if arguments.card:
        folder = checkpoint_folder(config.model)
        (folder / "README.md").write_text(card(checkpoint.model, result, folder), encoding="utf-8")


def card(model: WorldModel, result: DemoResult, folder: Path) -> str:
    """Text of the model card."""
    stored = model.config.provenance
    recipe, attributes = stored["recipe"], stored["data_attributes"]
    calibration = json.loads((folder / "monitor" / "calibration.json").read_text(encoding="utf-8"))
    loops = {name.removesuffix("_loop"): r for name, r in recipe.items() if name.endswith("_loop")}
    steps = ", ".join(
        f"{name} {r['steps']} steps of {r['batch_size']}" for name, r in loops.items()
    )
    rendered = (f"```\n{t.to_text()}\n```" for t in tables(result, model.config.rate_hz))
    return CARD.format(
        name="tabletop",
        task=result.config.task,
        parameters=sum(p.numel() for p in model.parameters()),
        data=stored["data"],
        episodes=sum(len(names) for names in stored["split"].values()),
        renderer=attributes["renderer"],
        mujoco=attributes["mujoco_version"],
        dynamics=len(stored["split"]["dynamics"]),
        confidence=len(stored["split"]["confidence"]),
        calibration=len(calibration["calibration"]),
        preset=stored["preset"],
        steps=steps,
        torch=stored["versions"]["torch"],
        commit=git_commit(),
        calibration_seed=", ".join(seeds_of(calibration["calibration"])) or "unknown",
        seed=result.config.seed,
        nominal=result.config.nominal,
        shifted=result.config.shifted,
        rollouts=result.config.rollouts,
        date=today(),
        tables="\n\n".join(rendered),
        false_alarms=false_alarms(result),
    )


def seeds_of(episode_ids: Sequence[str]) -> list[str]:
    """Seeds of simulated episodes, from their ids.

    >>> seeds_of(["pick_place-mixed-nominal-severity1-seed11-00000"])
    ['11']
    """
    return sorted({found[1] for name in episode_ids if (found := re.search(r"-seed(\d+)-", name))})


if __name__ == "__main__":
    main()
