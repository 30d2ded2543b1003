"""Tables of a certificate."""

from __future__ import annotations

from worldmodel.certificate import Certificate, Mean
from worldmodel.report.html import Table


def certificate_tables(found: Certificate) -> list[Table]:
    """Uses with reasons, then the measurements behind them."""
    words = {True: "yes", False: "no", None: "not measured"}
    uses = [
        (use, words[verified.passed], "; ".join(verified.reasons))
        for use, verified in found.uses.items()
    ]
    gains = [
        (
            row.horizon,
            f"{row.imagined:.1f}",
            f"{row.copied:.1f}",
            _interval(row.gain, "{:+.1f}"),
            row.gain.n,
        )
        for row in found.gains
    ]
    actions = [(name, _interval(row, "{:+.0%}"), row.n) for name, row in found.actions.items()]
    offsets = [(int(k), f"{v:.3f}") for k, v in found.offsets.items()]
    tables = [
        Table(
            caption=f"What the model may be used for: {found.episodes} held-out episodes of "
            f"{found.data}, {found.made}.",
            columns=["use", "certified", "why"],
            rows=uses,
        ),
        Table(
            caption="Pictures against repeating the last real frame: PSNR (dB), mean gain with 95% "
            "interval over episodes.",
            columns=["frames ahead", "imagined", "copied", "gain", "episodes"],
            rows=gains,
        ),
        Table(
            caption="Latent error under wrong actions, relative to the true ones.",
            columns=["actions", "increase", "episodes"],
            rows=actions,
        ),
        Table(
            caption="Latent error by offset of the actions; the least should be at 0.",
            columns=["offset (frames)", "error"],
            rows=offsets,
        ),
        Table(caption="Other measurements.", columns=["figure", "value"], rows=_figures(found)),
    ]
    return [table for table in tables if table.rows]


def _interval(row: Mean, form: str) -> str:
    value, low, high = (form.format(number) for number in (row.value, row.low, row.high))
    return f"{value} [{low}, {high}]"


def _figures(found: Certificate) -> list[tuple[str, str]]:
    rows = [
        (f"R² of actions read from {k} frames", f"{v:.2f}")
        for k, v in found.inverse_dynamics.items()
    ]
    if found.outcomes is not None:
        given = found.outcomes
        for name, rate, n in (
            ("imagined success given true failure", given.success_given_failure, given.failures),
            ("imagined failure given true success", given.failure_given_success, given.successes),
        ):
            rows.append((name, "-" if rate is None else f"{rate:.2f} of {n}"))
    if found.off_expert is not None:
        rows.append(("relative error, failed over successful episodes", f"{found.off_expert:.2f}"))
    for row in found.calibration:
        rows.append((f"calibration error in latents, {row.data}", f"{row.ece:.3f}"))
        if row.pixel_ece is not None:
            rows.append((f"calibration error in pictures, {row.data}", f"{row.pixel_ece:.3f}"))
        if row.pixel_right is not None:
            rows.append((f"right of patches stated at 0.9, {row.data}", f"{row.pixel_right:.3f}"))
    return rows
