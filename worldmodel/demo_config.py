"""Options of the demo, in a module that imports neither PyTorch nor the simulator."""

from __future__ import annotations

from dataclasses import dataclass

from worldmodel.rollouts.picture_kinds import check_kind

POLICIES_COMPARED = (
    "clean", "noise_010", "noise_015", "noise_020", "noise_030", "bias_015", "bias_020",
    "bias_030", "late_grip", "inverted_gripper",
)  # fmt: skip
"""Scripted policies of graded skill, from perfect to hopeless."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Number of simulated episodes, task, policies and seed of the demo."""

    model: str = "tabletop"
    """Calibrated checkpoint: a folder, or the name of a shipped one."""
    task: str = "pick_place"
    """"pick_place", "push" or "lift"."""
    nominal: int = 40
    """Nominal episodes; at least 2."""
    shifted: int = 6
    """Shifted episodes per factor and severity; at least 2."""
    rollouts: int = 16
    """Episodes per policy; at least 2."""
    policies: tuple[str, ...] = POLICIES_COMPARED
    """Scripted policies to compare; at least 2."""
    seed: int = 1_000_003
    """Seed of the episodes; training and calibration of the shipped checkpoint used others."""
    workers: int = 2
    """Simulation processes."""
    pictures: str = "composed"
    """"composed" with the last real frame: what did not change looks as it did; or "decoded"."""

    def __post_init__(self) -> None:
        if min(self.nominal, self.shifted, self.rollouts) < 2 or len(self.policies) < 2:
            raise ValueError(
                "`nominal`, `shifted`, `rollouts` and the number of `policies` must be at least 2, "
                f"got {self.nominal}, {self.shifted}, {self.rollouts} and {len(self.policies)}."
            )
        check_kind(self.pictures)
