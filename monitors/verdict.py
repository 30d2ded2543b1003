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


@dataclass(frozen=True, eq=False)
class Verdict:
    """A decision and the reasons for it.

    Two verdicts are equal if everything but the latency is the same, bit for bit.
    """

    level: Level
    causes: tuple[str, ...] = ()
    """What raised the level, the leading one first: a kind of change of the scene ("lighting",
    "background", "clutter", "target", "embodiment", "camera", or "unknown"), "action_out_of_range",
    "action_unfamiliar", "action_ignored", "model_disagreement", "low_confidence"; "sensor.*" and
    "monitor.*" name faults; "held" says that an earlier, higher level is not yet forgotten."""
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    """Every channel's score, those that did not run included."""
    trust_map: Float[np.ndarray, "*view h w"] | None = None
    """Trust in [0, 1] per latent position; None if no channel that maps could run."""
    latency_s: float = 0.0
    """Time the monitor took for this step, in seconds."""

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
        """Plain JSON values, from which `from_dict` makes an equal verdict."""
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
        """The inverse of `as_dict`; a `trust_map` that is missing is None.

        Raises:
            ValueError: `fields` is no verdict.
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
                f"`fields` must be a verdict as `as_dict` gives it ({reason})."
            ) from error


def _bits(number: float | None) -> str | None:
    return None if number is None else float(number).hex()


def _plain(number: float | None) -> float | str | None:
    """JSON knows no infinity and no NaN: they become texts."""
    return number if number is None or np.isfinite(number) else str(float(number))


def _number(plain: float | str | None) -> float | None:
    return None if plain is None else float(plain)
