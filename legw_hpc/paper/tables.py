"""Tables of kept logs in a page that is written by hand.

A comment in the page says of which logs, and what; the table below it is made from that:

    <!-- runs: baseline.lr; after 5 epochs = accuracy@5; at the end = accuracy; log
    mnist-lstm/b128-lr0.1.jsonl
    mnist-lstm/b128-lr0.2.jsonl
    -->

has a row a log, and

    <!-- epochs: 1-13
    logs/ptb-lstm-paper.jsonl: lr; test = perplexity
    logs/ptb-lstm-640.jsonl: test at 640 = perplexity
    -->

a row an epoch, with columns of each log.  A column is [HEADING = ] NAME [@WHEN] [:FORMAT].  NAME: a metric, a key of the recipe,
what `plan` tells of a run (lr, k, steps ...), of its curvature peak, peak_step, peak_epoch or half_epoch, or log, a link.  WHEN:
an epoch, or lastN for the mean of the last N evaluations.  FORMAT: Python's.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from legw_hpc.derived import derive
from legw_hpc.errors import InputError
from legw_hpc.figures.curvature import curve
from legw_hpc.records import Record, read

NO_METRIC = ("event", "time", "step", "epoch")  # of an evaluation's line
BLOCK = re.compile(r"^<!-- (runs|epochs): ([^\n]+)\n((?:[^\n]+\n)*?)-->\n(?:\n?(?:\|[^\n]*\n)+)?", re.M)


def redrawn(text: str, folder: Path, page: str) -> str:
    """A page with its tables made anew; all else stays.

    Args:
        text: of the page.
        folder: that the names of logs start from.
        page: its name, for errors.

    Raises:
        InputError: a log that is not there, or has nothing of that name.
    """

    def table(block: re.Match[str]) -> str:
        kind, words, logs = block[1], block[2], block[3].splitlines()
        try:
            head, rows = (_runs if kind == "runs" else _epochs)(words, logs, folder)
        except (InputError, ValueError, LookupError) as error:
            raise InputError(f"{page}: {block[0].splitlines()[0]}: {error}") from None
        return "\n".join([f"<!-- {kind}: {words}", *logs, "-->", "", *markdown(head, rows)]) + "\n"

    return BLOCK.sub(table, text)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Its lines; columns of numbers are set to the right."""
    first = [next((row[i] for row in rows if row[i]), "") for i in range(len(head))]
    marks = ["--:" if word[:1].isdigit() else "---" for word in first]
    return ["| " + " | ".join(line) + " |" for line in (head, marks, *rows)]


def _runs(words: str, logs: Sequence[str], folder: Path) -> tuple[list[str], list[list[str]]]:
    columns = _columns(words)
    rows = [[cell(_read(folder / log, log), log) for _, cell in columns] for log in logs]
    return [heading for heading, _ in columns], rows


def _epochs(words: str, logs: Sequence[str], folder: Path) -> tuple[list[str], list[list[str]]]:
    first, _, last = words.partition("-")
    epochs = words.replace(" ", "").split(",") if "," in words else map(str, range(int(first), int(last or first) + 1))
    head, rows = ["epoch"], [[epoch] for epoch in epochs]
    for line in logs:
        log, _, of = line.partition(": ")
        record = _read(folder / log, log)
        for row in rows:
            row += [cell(record, log) for _, cell in _columns(of, f"@{row[0]}")]
        head += [heading for heading, _ in _columns(of)]
    return head, rows


Cell = Callable[[Record, str], str]


def _columns(words: str, when: str = "") -> list[tuple[str, Cell]]:
    """Headings, and what a log has below each."""
    columns = []
    for word in words.split(";"):
        heading, _, what = word.strip().rpartition(" = ")
        name, _, shape = what.partition(":")
        columns.append((heading or name, _cell(name + when, shape)))
    return columns


def _cell(name: str, shape: str) -> Cell:
    def cell(record: Record, log: str) -> str:
        if name == "log":
            return f"[log]({log})"
        found, usual = _value(record, *name.partition("@")[::2])
        return "" if found is None else format(found, shape or ("" if isinstance(found, str) else usual))

    return cell


def _value(record: Record, name: str, when: str) -> tuple[Any, str]:
    """Of a run, and how it is written where a page does not say; None where that was not measured then.

    Raises:
        LookupError: nothing of a run is called so.
    """
    derived = derive(record.recipe)
    evals = [line for line in record.lines if line.get("event") == "eval"]
    measured = {key for line in evals for key in line if key not in NO_METRIC} | set((record.end or {}).get("metrics", {}))
    if name in measured:
        if not when:
            return (record.end or {}).get("metrics", {}).get(name), ".2f"
        if when.startswith("last"):
            return statistics.fmean([line[name] for line in evals][-int(when[4:]) :]), ".2f"
        return next((line[name] for line in evals if line["epoch"] == float(when)), None), ".2f"
    if name == "lr" and when:
        return derived.lr(round(float(when) * derived.steps_per_epoch) - 1), ".4g"
    if name.startswith(("peak", "half")):
        measured_at = curve(record)
        if (top := measured_at.peak) is None:
            return None, ""
        half = None if top.until is None else measured_at.epoch(top.until)
        of = {"peak": top.value, "peak_step": top.step, "peak_epoch": measured_at.epoch(top.step), "half_epoch": half}
        return of[name], ".3g"
    told: Any = {"ranks": record.lines[0].get("ranks")} | record.recipe.as_dict() | derived.as_dict()
    for key in name.split("."):
        if not isinstance(told, dict) or key not in told:
            raise LookupError(f"no {name} in {record.path.name}: there are {', '.join(sorted(measured))}, and the recipe's keys")
        told = told[key]
    return told, "," if isinstance(told, int) else ".4g"


def _read(path: Path, name: str) -> Record:
    record = read(path) if path.is_file() else None
    if record is None:
        raise InputError(f"{name}: no log of a run is there")
    return record
