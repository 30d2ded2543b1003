"""Verdict of the monitor on one step: level, causes and evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from jaxtyping import Float


class Level(IntEnum):
    """How far to trust the model at this step, from fully (0) to not at all (3)."""

    TRUST = 0
    NOTICE = 1
    DEGRADE = 2
    STOP = 3


@dataclass(frozen=True)
class Evidence:
    """One channel's score, its threshold and a sentence for people."""

    score: float | None
    """Higher is more surprising; None if the channel did not run."""
    threshold: float | None
    """Score above which the channel raises NOTICE."""
    note: str = ""
    """Sentence for people: the finding, or why the channel did not run."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """A level and the reasons for it.

    Verdicts are equal if all fields but the latency are the same, bit for bit.
    """

    level: Level
    causes: tuple[str, ...] = ()
    """Causes of the level, the leading one first. A change of the scene: "lighting", "background",
    "clutter", "object", "end_effector", "camera", "unknown", or "appearance" without a cause model.
    Action and model: "action_out_of_range", "action_unfamiliar", "action_ignored",
    "model_disagreement", "low_confidence". Faults: "sensor.*", "monitor.*". "held": hysteresis
    keeps an earlier, higher level."""
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    """Evidence by signal, including signals that did not run."""
    trust_map: Float[np.ndarray, "*view h w"] | None = None
    """Trust in [0, 1] per latent position; None if no channel gave a map."""
    latency_s: float = 0.0
    """Computing time of this step, in seconds."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Verdict):
            return NotImplemented
        return self._content() == other._content()

    def _content(self) -> tuple[object, ...]:
        evidence = {
            name: (_bits(e.score), _bits(e.threshold), e.note) for name, e in self.evidence.items()
        }
        trust_map = self.trust_map
        if trust_map is None:
            return self.level, self.causes, evidence, None
        pixels = trust_map.shape, trust_map.dtype.str, trust_map.tobytes()
        return self.level, self.causes, evidence, pixels

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` restores an equal verdict."""
        return {
            "level": self.level.name.lower(),
            "causes": list(self.causes),
            "evidence": {
                name: {"score": _plain(e.score), "threshold": _plain(e.threshold), "note": e.note}
                for name, e in self.evidence.items()
            },
            "trust_map": None if self.trust_map is None else self.trust_map.tolist(),
            "latency_s": self.latency_s,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Verdict:
        """Inverse of `as_dict`; a missing `trust_map` becomes None.

        Raises:
            ValueError: `fields` is not a verdict.
        """
        try:
            trust_map = fields.get("trust_map")
            return cls(
                Level[fields["level"].upper()],
                tuple(fields["causes"]),
                {
                    name: Evidence(_number(e["score"]), _number(e["threshold"]), e["note"])
                    for name, e in fields["evidence"].items()
                },
                None if trust_map is None else np.array(trust_map, dtype=np.float64),
                float(fields["latency_s"]),
            )
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"`fields` must be a verdict as written by `as_dict` ({reason})."
            ) from error


def _bits(number: float | None) -> str | None:
    return None if number is None else float(number).hex()


def _plain(number: float | None) -> float | str | None:
    """JSON has no NaN and no infinity: store them as strings."""
    return number if number is None or np.isfinite(number) else str(float(number))


def _number(plain: float | str | None) -> float | None:
    return None if plain is None else float(plain)
