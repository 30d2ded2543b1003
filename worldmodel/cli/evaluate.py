"""Compare success rates of scripted policies, replayed in imagination, with the simulator's."""

from __future__ import annotations

import json
from dataclasses import dataclass

from worldmodel.cli._device import AUTOMATIC, Networks
from worldmodel.demo_config import POLICIES_COMPARED


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of `worldmodel evaluate`."""

    model: str = "tabletop"
    """Calibrated checkpoint: a folder, or the name of a shipped one."""
    task: str = "pick_place"
    """"pick_place", "push" or "lift"."""
    policies: tuple[str, ...] = POLICIES_COMPARED
    """Scripted policies to compare; at least 2."""
    episodes: int = 16
    """Episodes per policy, 40 frames at 5 Hz each."""
    seed: int = 1_000_004
    """Seed of the episodes; training and calibration of the shipped checkpoint used others."""
    workers: int = 2
    """Simulation processes."""
    json: bool = False
    """Print the figures as JSON."""
    networks: Networks = AUTOMATIC

    def __post_init__(self) -> None:
        if len(self.policies) < 2 or self.episodes < 2:
            raise ValueError(
                "`policies` and `episodes` must be at least 2, got "
                f"{len(self.policies)} policies and {self.episodes} episodes."
            )


def run(command: Command) -> int:
    """Simulate and imagine every policy, classify success, and print the policy table."""
    from worldmodel.calibration.calibrated import Checkpoint
    from worldmodel.certificate import log_certificate
    from worldmodel.evaluation.simulate import evaluate_simulated
    from worldmodel.report.policy_tables import agreement_table, policy_table

    checkpoint = Checkpoint.load(
        command.model, stages=("confidence", "judge"), **command.networks.placement
    )
    log_certificate(checkpoint.folder)
    evaluation = evaluate_simulated(
        checkpoint, command.policies, task=command.task, episodes=command.episodes,
        seed=command.seed, workers=command.workers,
    )  # fmt: skip
    if command.json:
        print(json.dumps(evaluation.as_dict()))
        return 0
    print(f"{policy_table(evaluation).to_text()}\n\n{agreement_table(evaluation).to_text()}")
    return 0
