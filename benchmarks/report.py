"""A benchmark's record as text: what its goals come to, and the table."""

from __future__ import annotations

import itertools
import math
from typing import Any

PEERS = ("pytorch_optimizer", "timm", "webdataset", "mosaicml-streaming", "pillow")  # that a record has the versions of


def figures(goal: dict[str, Any]) -> tuple[float, str, float]:
    """What was measured, whether the goal is at "least" or "most", and the goal."""
    return (goal["ratio"], "least", goal["at_least"]) if "ratio" in goal else (goal["value"], "most", goal["at_most"])


def reached(goal: dict[str, Any]) -> bool:
    """Of a goal's line in a record."""
    found, sign, wanted = figures(goal)
    return found >= wanted if sign == "least" else found <= wanted


def between(goal: dict[str, Any]) -> tuple[float, float] | None:
    """95 % confidence of a ratio's median, or more, by order statistics of its rounds; None if none are kept.

    From all of five rounds or fewer it is less: 94 % of five, 75 % of three.
    """
    rounds = goal.get("rounds", [])
    if len(rounds) < 2:
        return None
    n = len(rounds)
    # Left out on either side: as many as lie beyond the median with a chance of 2.5 % at most; binomial (n, 1/2).
    beyond = itertools.accumulate(math.comb(n, i) / 2**n for i in range(n))
    off = max(0, sum(chance <= 0.025 for chance in beyond) - 1)
    return rounds[off], rounds[n - 1 - off]


def verdict(goal: dict[str, Any]) -> str:
    """In words: whether the rounds tell it."""
    found, interval = reached(goal), between(goal)
    if interval is not None and interval[0] < figures(goal)[2] <= interval[1]:
        return "not decided"
    return "reached" if found else "not reached"


def table(name: str, about: str, rows: list[dict[str, Any]], goals: list[dict[str, Any]], notes: list[str]) -> str:
    """Markdown: the cases, the goals, and where it was measured."""
    lines = [f"# {name}: {about}", "", "| case | median | quartiles | n |", "|---|--:|--:|--:|"]
    for line in rows:
        low, high = line["quartiles"]
        lines.append(
            f"| {line['case']} | {_number(line['median'])} {line['unit']} | {_number(low)} to {_number(high)} | {line['n']} |"
        )
    if goals:
        lines += ["", "| | measured | goal | |", "|---|--:|--:|---|"]
        for goal in goals:
            said = "; ".join(filter(None, [verdict(goal), goal["note"]]))
            (found, sign, wanted), interval = figures(goal), between(goal)
            spread = "" if interval is None else " ({:.3g} to {:.3g})".format(*interval)
            lines.append(f"| {goal['goal']} | {found:.3g}{spread} | {'≥' if sign == 'least' else '≤'} {wanted:.3g} | {said} |")
    where = rows[0]
    peers = "".join(f", {name} {where['versions'][name]}" for name in PEERS if name in where["versions"])
    crowd = ", oversubscribed" if where["oversubscribed"] else ""
    lines += ["", *(f"{note}  " for note in notes), ""] if notes else [""]
    lines += [
        f"`{where['command']}`, {where['time']}, commit {where['commit']}; {where['hardware']}; {where['ranks']} ranks x "
        f"{where['threads']} threads{crowd}; torch {where['versions']['torch']}, Horovod {where['versions']['horovod']}{peers}.",
        "",
    ]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
