"""The table and the sentences that tell a comparison of `pseudolabel.retention`."""

from collections.abc import Sequence

from pseudolabel.paired import spread
from pseudolabel.retention import (
    CONVERGED_AP,
    HUMAN,
    METRICS,
    MIN_HUMAN_AP,
    MIN_SEEDS,
    ArmResult,
    Run,
    last_quarter_gain,
    seen_labels,
)


def table(results: Sequence[ArmResult], bar: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: AP over seeds, differences paired by seed, retention in percent."""
    header = ["trained on", *METRICS, "AP - human", f"AP - {bar}", "retention, %", "seeds"]
    reference = any(result.arm == HUMAN for result in results)
    rows = [
        [
            result.arm,
            *(value.show(1) for value in result.metrics.values()),
            result.to_human.show(1, sign=True),
            result.to_bar.show(1, sign=True),
            _percent(result, reference),
            str(len(result.seeds)),
        ]
        for result in results
    ]
    return header, rows


def _percent(result: ArmResult, reference: bool) -> str:
    if result.percent is None:
        return "under-trained" if reference else "–"
    return "100" if result.arm == HUMAN else result.percent.show(1)


def description(
    results: Sequence[ArmResult], runs: Sequence[Run], bar: str, unfinished: Sequence[str]
) -> str:
    """What the table shows, and what it does not.

    Args:
        unfinished: names of the runs that were asked for and are not there.
    """
    seeds = max((len(result.seeds) for result in results), default=0)
    how = "one seed" if seeds == 1 else f"mean ± standard deviation of up to {seeds} seeds"
    parts = [
        "The arms differ in the masks of train alone and are evaluated on the human masks of val: "
        f"{how}, differences and retention (mask AP / mask AP with human masks) paired by seed. "
        "Box AP is a control that the masks should not move.",
        _convergence(runs),
        _bar_text(results, bar),
    ]
    if not any(result.arm == HUMAN for result in results):
        parts.append("No run on human masks is finished, so there is no retention.")
    elif any(result.percent is None for result in results):
        reached = f"does not reach {MIN_HUMAN_AP:.0f} AP on human masks"
        parts.append(f"Under-trained: the detector {reached}, and a ratio says nothing.")
    unproven = sorted(run.folder.name for run in runs if seen_labels(run) is None)
    if unproven:
        parts.append(
            f"{len(unproven)} runs did not write down the hash of the labels that they saw."
        )
    if unfinished:
        parts.append(f"Not finished: {', '.join(unfinished)}.")
    return " ".join(part for part in parts if part)


def _convergence(runs: Sequence[Run]) -> str:
    gains = [last_quarter_gain(run.numbers) for run in runs if run.arm == HUMAN]
    known = [gain for gain in gains if gain is not None]
    if not known:
        return "Whether the human-mask runs have converged was not measured."
    shown = spread(known).show(1, sign=True)
    verdict = "" if spread(known).mean < CONVERGED_AP else ": they have not converged"
    return f"In the last quarter of the schedule the human-mask runs gained {shown} AP{verdict}."


def _bar_text(results: Sequence[ArmResult], bar: str) -> str:
    others = [r for r in results if r.arm not in (HUMAN, bar) and r.to_bar.n >= MIN_SEEDS]
    if not others:
        return ""
    clear = [result.arm for result in others if result.clears_bar]
    names = ", ".join(clear) if clear else "no arm"
    return f"Above {bar} by more than two standard deviations of the paired difference: {names}."
