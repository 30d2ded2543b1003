"""What the monitor says about one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from jaxtyping import Float


class Level(IntEnum):
    """How much to rely on the model at this step, from full to not at all."""

    TRUST = 0
    NOTICE = 1
    DEGRADE = 2
    STOP = 3


@dataclass(frozen=True)
class Evidence:
    """One channel's part in a verdict."""

    score: float | None
    """Higher is more surprising; None if the channel did not run."""
    threshold: float | None
    """The score above which the channel gives notice."""
    note: str = ""
    """For people: why it did not run, or what it found."""


@dataclass(frozen=True)
class Verdict:
    """A decision and the reasons for it."""

    level: Level
    causes: tuple[str, ...] = ()
    """Channels that raised the level, most surprising first; "sensor.*" and "monitor.*" name
    faults, "held" says that the step is calm and an earlier one is not yet forgotten."""
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    """Every channel's score, those that did not run included."""
    trust_map: Float[np.ndarray, "*view h w"] | None = None
    """Trust in [0, 1] per latent position; None if no channel that maps could run."""
    latency_s: float = 0.0
    """Time the monitor took for this step, in seconds."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        trust_map = None if self.trust_map is None else np.round(self.trust_map, 4).tolist()
        return {
            "level": self.level.name.lower(),
            "causes": list(self.causes),
            "evidence": {name: vars(evidence) for name, evidence in self.evidence.items()},
            "trust_map": trust_map,
            "latency_s": self.latency_s,
        }
