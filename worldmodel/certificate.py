"""Certificate of a model: what was measured on held-out episodes, and what it may be used for.

The certificate is `certificate.json` in the checkpoint folder. It belongs to the weights it was
measured with; one of other weights counts as none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from worldmodel.checkpoint import fingerprint
from worldmodel.structured_files import read_json

LOG = logging.getLogger(__name__)
FILE = "certificate.json"
FORMAT = 1
SHOW, MONITOR, RANK, PLAN = "show pictures", "monitor", "rank policies", "plan"
USES = (SHOW, MONITOR, RANK, PLAN)
"""Uses of a model, each with its own bars."""

SHOWN_FRAMES = 8
"""Horizon, in frames, up to which shown pictures must be no worse than a copy."""
MARGIN_DB = 0.5
"""Loss against the copy that the interval must exclude for "no worse"."""
MOST_ECE = 0.05
"""Highest calibration error of a model whose confidence is monitored."""
MOST_WRONG = 0.15
"""Highest rate of imagined success given true failure, and of the reverse, of a model that ranks
policies."""
LEAST_FAILURES = 20
"""Fewest true failures, and successes, that these rates may be measured on."""
LEAST_SHARE = 0.5
"""Least share of the explained action variance of true pairs that imagined pairs must reach."""
MOST_EXCESS = 1.5
"""Highest relative error in failed episodes, as a multiple of that in successful ones."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Mean over episodes with its 95% bootstrap interval."""

    value: float
    low: float
    high: float
    n: int
    """Episodes."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """PSNR of pictures over copying the last real frame, at one horizon, in dB."""

    horizon: int
    imagined: float
    copied: float
    gain: Mean


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Imagined outcomes of whole episodes, from the first frame, against true ones."""

    failures: int
    successes: int
    success_given_failure: float | None
    """Optimism: share of true failures that are imagined as successes; None without failures."""
    failure_given_success: float | None


@dataclass(frozen=True, kw_only=True)
class CalibrationError:
    """Calibration of the confidence on one data set."""

    data: str
    episodes: int
    ece: float
    """Pooled expected calibration error of the confidence in latents."""
    pixel_ece: float | None = None
    """Highest over δ of that of the confidence in pictures; None: the model has none."""
    pixel_right: float | None = None
    """Lowest over δ of the share of right patches among those stated at 0.9 or more."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """Whether a model may be put to one use, and why."""

    passed: bool | None
    """None: not measured."""
    reasons: list[str]


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Measurements and verdicts."""

    model: str
    """`fingerprint` of the checkpoint."""
    made: str
    """Date, ISO 8601."""
    data: str
    episodes: int
    gains: list[Gain]
    actions: dict[str, Mean]
    """Wrong actions -> relative increase of the latent error over that with the true ones."""
    offsets: dict[str, float]
    """Offset of the actions in frames -> mean latent error; the true ones are at "0"."""
    inverse_dynamics: dict[str, float]
    """R² of actions read back from pairs of frames, "real" and "imagined"; empty: not readable."""
    outcomes: Outcomes | None
    """None without success labels or a success classifier."""
    off_expert: float | None
    """Error relative to a copy in failed episodes, divided by that in successful ones."""
    calibration: list[CalibrationError]
    uses: dict[str, Verified] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def no_worse_until(self) -> int:
        """Last horizon of the leading ones at which pictures are no worse than a copy; 0: none."""
        reached = 0
        for row in self.gains:
            if row.gain.low < -MARGIN_DB:
                break
            reached = row.horizon
        return reached

    @property
    def worse_until(self) -> int:
        """Last horizon of the leading ones at which pictures are worse than a copy; 0: none."""
        reached = 0
        for row in self.gains:
            if row.gain.high >= 0:
                break
            reached = row.horizon
        return reached

    def sentence(self) -> str:
        """What the model is certified for, and the first reason against each other use."""
        good = [use for use in USES if self.uses[use].passed]
        bad = [
            f"{use} ({self.uses[use].reasons[0]})" for use in USES if self.uses[use].passed is False
        ]
        unknown = [use for use in USES if self.uses[use].passed is None]
        parts = [f"certified to {_listed(good)}" if good else "certified for nothing"]
        parts += [f"do not use it to {_listed(bad)}"] if bad else []
        parts += [f"not measured: {_listed(unknown)}"] if unknown else []
        if self.worse_until:
            worse = f"worse than repeating the last frame up to {self.worse_until} frames"
            parts.insert(0, worse)
        return f"The model is {'; '.join(parts)}."

    def save(self, folder: Path) -> None:
        """Write `certificate.json`; an earlier one is replaced at once or not at all."""
        partial = folder / f".{FILE}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Certificate | None:
        """Certificate of a checkpoint; None if it has none, or one of other weights.

        Raises:
            ValueError: It cannot be read, or is of another version.
        """
        file = folder / FILE
        if not file.is_file():
            return None
        found = read_json(file, cls, "certify the model again")
        if found.format != FORMAT or set(found.uses) != set(USES):
            raise ValueError(f"{file} is from another version; certify the model again.")
        return found if found.model == fingerprint(folder) else None


def _listed(names: Sequence[str]) -> str:
    """Names as a list in words.

    >>> _listed(["show", "monitor", "plan"])
    'show, monitor and plan'
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def certificate_note(folder: Path) -> str:
    """One sentence about what the checkpoint in a folder is certified for."""
    found = Certificate.load(folder)
    if found is not None:
        return found.sentence()
    if (folder / FILE).is_file():
        return "The model's certificate is of other weights: `worldmodel certify` makes a new one."
    return (
        "The model has no certificate: nothing says what it may be used for. `worldmodel certify` "
        "measures it on held-out episodes."
    )


def log_certificate(folder: Path) -> None:
    """Log as a warning what the checkpoint in a folder is certified for."""
    LOG.warning("note: %s", certificate_note(folder))


def verified_uses(measured: Certificate) -> dict[str, Verified]:
    """Verdict on every use, from the measurements."""
    show = _show(measured)
    monitor = _all(show, _acts(measured), _calibrated(measured))
    rank = _all(_acts(measured), _follows(measured), _honest(measured))
    return {SHOW: show, MONITOR: monitor, RANK: rank, PLAN: _all(rank, _off_expert(measured))}


def _all(*parts: Verified) -> Verified:
    """Passed if all parts passed; the reasons of failures come first."""
    results = [part.passed for part in parts]
    passed = False if False in results else None if None in results else True
    order = sorted(parts, key=lambda part: (part.passed is not False, part.passed is not None))
    return Verified(passed=passed, reasons=[reason for part in order for reason in part.reasons])


def _show(measured: Certificate) -> Verified:
    reached = measured.no_worse_until
    longest = max((row.horizon for row in measured.gains), default=0)
    needed = min(SHOWN_FRAMES, longest)
    if not longest:
        return Verified(passed=None, reasons=["no episode is long enough to show pictures"])
    reason = f"pictures are no worse than repeating the last frame up to {reached} frames"
    if reached < needed:
        row = next(row for row in measured.gains if row.horizon > reached)
        reason = (
            f"{row.gain.value:+.1f} dB [{row.gain.low:+.1f}, {row.gain.high:+.1f}] against "
            f"repeating the last frame at {row.horizon} frames, at least {-MARGIN_DB} needed"
        )
    return Verified(passed=reached >= needed, reasons=[reason])


def _acts(measured: Certificate) -> Verified:
    """Whether wrong actions make the error larger, and the true ones are at offset 0."""
    if not measured.actions:
        return Verified(passed=None, reasons=["fewer than 2 episodes to compare actions"])
    weak = [name for name, row in measured.actions.items() if row.low <= 0]
    if weak:
        row = measured.actions[weak[0]]
        interval = f"[{row.low:+.0%}, {row.high:+.0%}]"
        reason = f"{weak[0]} actions change the error by {row.value:+.0%} {interval}"
        return Verified(passed=False, reasons=[reason])
    if measured.offsets:
        best = min(measured.offsets, key=lambda name: measured.offsets[name])
        if best != "0":
            reason = f"actions fit best when shifted by {best} frames"
            return Verified(passed=False, reasons=[reason])
    return Verified(passed=True, reasons=["imagined frames depend on the right actions"])


def _follows(measured: Certificate) -> Verified:
    """Whether actions can be read back from imagined frames."""
    found = measured.inverse_dynamics
    if not found:
        return Verified(passed=None, reasons=["actions cannot be read back from real frames"])
    share = max(0.0, found["imagined"]) / found["real"]
    reason = f"actions read back from imagined frames: {share:.0%} of what real frames tell"
    return Verified(passed=share >= LEAST_SHARE, reasons=[reason])


def _honest(measured: Certificate) -> Verified:
    """Whether failures are imagined as failures, and successes as successes."""
    found = measured.outcomes
    if found is None or found.success_given_failure is None:
        return Verified(passed=None, reasons=["no labelled failures"])
    if found.failures < LEAST_FAILURES:
        reason = f"{found.failures} labelled failures, at least {LEAST_FAILURES} needed"
        return Verified(passed=None, reasons=[reason])
    if found.failure_given_success is None or found.successes < LEAST_FAILURES:
        reason = f"{found.successes} labelled successes, at least {LEAST_FAILURES} needed"
        return Verified(passed=None, reasons=[reason])
    wrong = {
        f"{found.failures} true failures are imagined as successes": found.success_given_failure,
        f"{found.successes} true successes are imagined as failures": found.failure_given_success,
    }
    reasons = [f"{rate:.2f} of {text}" for text, rate in wrong.items()]
    bad = [
        f"{reason}, at most {MOST_WRONG} allowed"
        for reason, rate in zip(reasons, wrong.values(), strict=True)
        if rate > MOST_WRONG
    ]
    return Verified(passed=not bad, reasons=bad or reasons)


def _calibrated(measured: Certificate) -> Verified:
    if not measured.calibration:
        return Verified(passed=None, reasons=["the model states no confidence"])
    worst = max(measured.calibration, key=lambda row: row.ece)
    reason = f"calibration error {worst.ece:.3f} on {worst.data}"
    if worst.ece > MOST_ECE:
        reason += f", at most {MOST_ECE} allowed"
    return Verified(passed=worst.ece <= MOST_ECE, reasons=[reason])


def _off_expert(measured: Certificate) -> Verified:
    if measured.off_expert is None:
        return Verified(passed=None, reasons=["no labelled failures and successes to compare"])
    reason = f"relative error in failed episodes is {measured.off_expert:.2f} times that in others"
    return Verified(passed=measured.off_expert <= MOST_EXCESS, reasons=[reason])
