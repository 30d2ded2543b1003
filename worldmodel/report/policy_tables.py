"""Tables of a policy evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from worldmodel.evaluation.evaluate import Agreement, Evaluation
from worldmodel.evaluation.statistics import LEAST_POLICIES, Correlation, Proportion
from worldmodel.report.format import with_interval
from worldmodel.report.html import Table


def proportion(value: Proportion | None) -> str:
    """A share and its interval; a dash without trials."""
    if value is None:
        return "-"
    return with_interval(value.value, (value.low, value.high))


REPLAY = (
    "Imagined rollouts replay the actions recorded in the true episodes: this is agreement on "
    "replay, not a prediction of how a policy acts on imagined frames."
)


def correlation(value: Correlation) -> str:
    """A correlation and its interval, or why there is none."""
    if value.value is None:
        return "needs 4 policies" if value.k < LEAST_POLICIES else "undefined"
    return with_interval(value.value, value.interval) + (
        " (no interval)" if value.interval is None else ""
    )


def counts(evaluation: Evaluation) -> str:
    """Numbers of policies, families, episodes and scenes, in words."""
    e = evaluation
    return (
        f"{len(e.policies)} policies of {e.num_families} families, {e.num_episodes} episodes in "
        f"{e.num_scenes} scenes"
    )


def policy_table(evaluation: Evaluation) -> Table:
    """True and imagined success rate per policy."""
    return Table(
        caption=f"Success rates: {counts(evaluation)}; with 95% Wilson intervals. {REPLAY} "
        "Imagined, gated: only rollouts that pass the gate (coverage: their share); true, gated: "
        "the truth of the same episodes. Actions only: baseline that predicts success from the "
        "actions alone.",
        columns=(
            "policy", "episodes", "true", "imagined", "imagined, gated", "true, gated", "coverage",
            "actions only",
        ),
        rows=[
            (p.name, p.true.n, proportion(p.true), proportion(p.imagined),
             proportion(p.bounds.gated), proportion(p.true_of_trusted),
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
            correlation(a.spearman), f"{a.mmrv:.3f}", f"{a.mmrv_with_ties:.3f}",
            f"{a.mean_absolute_error:.2f}",
        )  # fmt: skip

    rows = [row("imagined", evaluation.imagined)]
    if evaluation.gated is not None:
        rows.append(row("imagined, gated", evaluation.gated))
    rows.append(row("actions only", evaluation.from_actions))
    return Table(
        caption=f"Agreement with the true success rates of k policies: {counts(evaluation)}. "
        f"{REPLAY} Intervals of 95% resample families of policies and scenes together; fewer than "
        "4 families have none. Imagined, gated: trusted rollouts against the truth of the same "
        "episodes. Leave-one-out: range of r with any one policy left out. MMRV: mean maximum rank "
        "violation, 0 is best; ties against: with ties of predicted rates charged to both "
        "policies. Mean error: mean absolute difference of success rates.",
        columns=(
            "predictor",
            "k",
            "Pearson r",
            "leave-one-out r",
            "Spearman",
            "MMRV",
            "MMRV, ties against",
            "mean error",
        ),
        rows=rows,
    )
