"""Tables of the evaluation of policies."""

from __future__ import annotations

from collections.abc import Sequence

from worldmodel.evaluation.evaluate import Agreement, Evaluation
from worldmodel.evaluation.statistics import Correlation, Proportion
from worldmodel.report.html import Table


def proportion(value: Proportion | None) -> str:
    """A share and its interval; a dash where there were no trials."""
    if value is None:
        return "-"
    return f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def correlation(value: Correlation) -> str:
    """A correlation and its interval where the data give them."""
    if value.value is None:
        return "undefined"
    if value.interval is None:
        return f"{value.value:.2f}"
    return f"{value.value:.2f} [{value.interval[0]:.2f}, {value.interval[1]:.2f}]"


def policy_table(evaluation: Evaluation) -> Table:
    """True and imagined success per policy."""
    n = evaluation.policies[0].true.n
    return Table(
        caption=f"Success of {len(evaluation.policies)} policies, {n} episodes each, with 95% "
        "Wilson intervals: true, imagined, imagined with the gate (coverage: share of rollouts let "
        "through), and as a predictor expects it that sees only the actions.",
        columns=("policy", "true", "imagined", "imagined, gated", "coverage", "actions only"),
        rows=[
            (p.name, proportion(p.true), proportion(p.imagined), proportion(p.bounds.gated),
             f"{p.bounds.coverage.value:.2f}", proportion(p.from_actions))
            for p in evaluation.policies
        ],
    )  # fmt: skip


def agreement_table(evaluation: Evaluation) -> Table:
    """How well each predictor orders the policies."""

    def row(name: str, a: Agreement) -> Sequence[str]:
        drop = a.pearson.drop_one
        return (
            name, str(a.pearson.k), correlation(a.pearson),
            "-" if drop is None else f"{drop[0]:.2f} to {drop[1]:.2f}",
            correlation(a.spearman), f"{a.mmrv:.3f}", f"{a.mean_absolute_error:.2f}",
        )  # fmt: skip

    rows = [row("imagined", evaluation.imagined)]
    if evaluation.gated is not None:
        rows.append(row("imagined, gated", evaluation.gated))
    rows.append(row("actions only", evaluation.from_actions))
    return Table(
        caption="Agreement with true success over k policies. MMRV: mean maximum rank violation, "
        "0 is best.",
        columns=(
            "predictor",
            "k",
            "Pearson r",
            "r, one left out",
            "Spearman",
            "MMRV",
            "mean error",
        ),
        rows=rows,
    )
