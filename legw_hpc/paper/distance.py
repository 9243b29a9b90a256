"""What a large batch ends at beside the small one at an equal sum of learning rates.

With LEGW a run of k times the batch has 1/k of the steps at sqrt(k) times the rate: its rates add up to 1/sqrt(k) of the
baseline's.  As long as gradients stay alike, that is how far SGD gets.  So the question that a loss at a large batch asks is
whether the batch costs quality, or the shorter way does: the baseline, seen when its rates had come to the same sum, tells.
"""

from __future__ import annotations

from collections.abc import Sequence

from legw_hpc.derived import derive
from legw_hpc.places import Place, Spread, learnt
from legw_hpc.records import Record

HEAD = ("batch", "sum of lr", "of the baseline's", "in its epochs", "the baseline then", "LEGW at its end")
UNSEEN = "before its first evaluation"


def rows(line: Sequence[Place], metric: str) -> list[list[str]]:
    """A table's, of each batch above the baseline's that has been run; none where the baseline has not.

    Args:
        line: places of LEGW.
        metric: what the runs are judged by.
    """
    base = next((place for place in line if place.derived.scaled.k == 1 and place.done), None)
    if base is None:
        return []
    whole, told = base.derived.lr_sum(), []
    for place in line:
        if place.derived.scaled.k > 1 and place.records:
            total = place.derived.lr_sum()
            then = [found for record in base.records if (found := seen(record, metric, total)) is not None]
            epochs = base.derived.course.epoch(steps_to(base, total))
            share = [f"{place.derived.scaled.batch:,}", f"{total:,.0f}", f"{total / whole:.2f}", f"{epochs:.1f}"]
            told.append(
                [*share, str(learnt(Spread(tuple(then)), metric)) if then else UNSEEN, str(learnt(place.spread(metric), metric))]
            )
    return told


def steps_to(place: Place, total: float) -> int:
    """How many of its steps have rates that add up to so much; all, if they do not."""
    reached = 0.0
    for step in range(place.derived.last):
        if reached >= total:
            return step
        reached += place.derived.lr(step)
    return place.derived.last


def seen(record: Record, metric: str, total: float) -> float | None:
    """A metric when the rates of a run had added up to so much, on a line between two evaluations; None before the first."""
    derived, before = derive(record.recipe), None
    for line in record.lines:
        if line.get("event") == "eval" and metric in line:
            now = derived.lr_sum(line["step"]), line[metric]
            if now[0] >= total:
                if before is None:
                    return None
                share = (total - before[0]) / (now[0] - before[0])
                return float(before[1] + share * (now[1] - before[1]))
            before = now
    return None
