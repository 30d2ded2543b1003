"""Tables of a policy evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from worldmodel.evaluation.evaluate import Agreement, Evaluation
from worldmodel.evaluation.statistics import Correlation, Proportion
from worldmodel.report.format import with_interval
from worldmodel.report.html import Table


def proportion(value: Proportion | None) -> str:
    """A share and its interval; a dash without trials."""
    if value is None:
        return "-"
    return with_interval(value.value, (value.low, value.high))


def correlation(value: Correlation) -> str:
    """A correlation and, if there is one, its interval."""
    if value.value is None:
        return "undefined"
    return with_interval(value.value, value.interval)


def policy_table(evaluation: Evaluation) -> Table:
    """True and imagined success rate per policy."""
    n = evaluation.policies[0].true.n
    return Table(
        caption=f"Success rates of {len(evaluation.policies)} policies, {n} episodes each, with "
        "95% Wilson intervals. Imagined, gated: only rollouts that pass the gate (coverage: their "
        "share). Actions only: baseline that predicts success from the actions alone.",
        columns=("policy", "true", "imagined", "imagined, gated", "coverage", "actions only"),
        rows=[
            (p.name, proportion(p.true), proportion(p.imagined), proportion(p.bounds.gated),
             f"{p.bounds.coverage.value:.2f}", proportion(p.from_actions))
            for p in evaluation.policies
        ],
    )  # fmt: skip


def agreement_table(evaluation: Evaluation) -> Table:
    """Agreement of each predictor with true success."""

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
        caption="Agreement with the true success rates of k policies. Leave-one-out: range of r "
        "with any one policy left out. MMRV: mean maximum rank violation, 0 is best. Mean error: "
        "mean absolute difference of success rates.",
        columns=(
            "predictor",
            "k",
            "Pearson r",
            "leave-one-out r",
            "Spearman",
            "MMRV",
            "mean error",
        ),
        rows=rows,
    )
