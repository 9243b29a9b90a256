"""Runs that are on disk, found by what their log's start line says of the recipe, not by a file's name.

A log counts wherever it lies below a folder: RUN/log.jsonl of a run folder, or the compact copy that
`keep` makes of it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from legw_hpc import runlog, strict
from legw_hpc.data.files import make_folder, written_whole
from legw_hpc.derived import Derived, derive
from legw_hpc.errors import InputError
from legw_hpc.recipe import Recipe

# Of a log, what its run came to; the lines of single steps are by far the most.
STARTS = ("start", "resume")
KEPT = (*STARTS, "eval", "end")

# The solver's own default: a recipe need not spell it out, and the first logs did not.
MOMENTUM = {"solvers.momentum.momentum": 0.9}


@dataclass(frozen=True)
class Record:
    """One run's log.

    Attributes:
        recipe: as it was trained; `max_steps` is that of the command that went on with it last.
    """

    path: Path
    recipe: Recipe
    lines: tuple[dict[str, Any], ...]

    @property
    def end(self) -> dict[str, Any] | None:
        """The result, of a run that has ended."""
        return self.lines[-1] if self.lines[-1].get("event") == "end" else None

    @property
    def result(self) -> dict[str, Any]:
        """How it ended, without when and how fast."""
        return {key: (self.end or {}).get(key) for key in ("status", "step", "steps", "metrics")}

    @property
    def steps(self) -> int:
        """That it came to; 0 where it has not ended."""
        return int((self.end or {}).get("steps", 0))

    def finished(self, last: int) -> bool:
        """Has it got to step `last`, or diverged on the way."""
        return self.end is not None and runlog.settles(self.end, last)

    def came_to(self, last: int) -> bool:
        """Is it the result of `last` steps, or diverged on the way; a longer run is another."""
        return self.end is not None and self.finished(last) and (self.end["status"] == "diverged" or self.steps == last)

    def row(self, derived: Derived) -> dict[str, Any]:
        """One result: what was trained, how it ended, and where, when and by what code.

        "settings" has every key of the recipe that decides the result and is not its default; "steps" are those done,
        "planned_steps" the schedule's.

        Args:
            derived: of the same run.
        """
        start, end = self.lines[0], self.end or {}
        when = datetime.fromtimestamp(start["time"], timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        planned = derived.as_dict()
        about = {"solver": self.recipe.solver, "seed": self.recipe.seed, "settings": self.recipe.spelled()}
        result = {key: value for key, value in end.items() if key not in ("event", "time", "step", "steps")}
        if end.get("status") == "diverged":
            about["diverged_at"] = end.get("step")  # an older log does not tell
        about |= {"planned_steps": planned.pop("steps"), "steps": self.steps}
        origin = {"command": self.command, "commit": self._all("commit"), "ranks": self._all("ranks")}
        return planned | about | result | origin | {"started": when, "log": str(self.path)}

    @property
    def command(self) -> str | None:
        """What was typed last: with the first one's recipe, but perhaps another `max_steps`."""
        told = [line["command"] for line in self.lines if line.get("event") in STARTS and "command" in line]
        return told[-1] if told else None

    def _all(self, key: str) -> Any:
        """Of the start and of each resume: one value, or those that there were, in order."""
        told = list(dict.fromkeys(line[key] for line in self.lines if line.get("event") in STARTS and key in line))
        return told[0] if len(told) == 1 else ", ".join(map(str, told)) or None

    def curvature(self) -> tuple[list[int], list[float]]:
        """The steps at which L(x, g) was measured, and its values."""
        steps: list[int] = []
        values: list[float] = []
        for line in self.lines:
            if line.get("event") == "curvature":
                many = isinstance(line["step"], list)
                steps += line["step"] if many else [line["step"]]
                values += line["L"] if many else [line["L"]]
        return steps, values


class Records:
    """All run logs below some folders; a folder that is not there has none.

    Raises:
        InputError: a log of a recipe that this version does not know.
    """

    def __init__(self, *folders: Path):
        self._alike: dict[str, list[Record]] = {}
        there = [folder for folder in folders if os.path.isdir(folder)]  # unlike Path's, no error where it may not look
        for path in sorted({path for folder in there for path in folder.rglob("*.jsonl")}):
            record = read(path)
            if record is not None:
                self._alike.setdefault(but_seed(record.recipe), []).append(record)

    def seeds(self, derived: Derived) -> dict[int, Record]:
        """The finished runs that differ from this one in their seed at most, by seed."""
        alike = self._alike.get(but_seed(derived.recipe), [])
        return {record.recipe.seed: record for record in reversed(alike) if record.came_to(derived.last)}

    def of(self, derived: Derived) -> Record | None:
        """This run, if it is finished."""
        return self.seeds(derived).get(derived.recipe.seed)


def read(path: Path) -> Record | None:
    """A run's log; None of another JSON-lines file, and where there is none."""
    try:
        lines = [line for line in runlog.parse(path.read_text(encoding="utf-8")) if isinstance(line, dict)]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not lines or lines[0].get("event") != "start" or not isinstance(lines[0].get("recipe"), Mapping):
        return None
    told = dict(lines[0]["recipe"])
    for line in lines:
        if line.get("event") == "resume" and "max_steps" in line:
            told["max_steps"] = line["max_steps"]
    recipe = strict.build(Recipe, told, f"{path}: recipe")
    record = Record(path, recipe, tuple(lines))
    if (end := record.end) is not None:
        wanted = ("metrics", "steps", "samples_per_s") if end.get("status") == "done" else ("status", "message")
        if absent := [key for key in wanted if key not in end]:
            raise InputError(f"{path}: its last line is not the result of a run: no {' and no '.join(absent)}")
    return record


def keep(record: Record, folder: Path) -> Path:
    """Copy the lines that results are made of to FOLDER/NAME.jsonl; the name is the run's own.

    Of the folders that the run wrote to and read, the name alone is copied: where they were tells nothing.

    Raises:
        InputError: the run has not ended, another result of it is there, or the folder cannot be written.
    """
    derived = derive(record.recipe)
    if not record.finished(derived.last):
        raise InputError(f"{record.path}: this run has not ended; the command that began it goes on with it")
    kept = [_placeless(line) for line in record.lines if line.get("event") in KEPT]
    steps, values = record.curvature()
    if steps:
        rounded = [float(f"{value:.4g}") for value in values]
        kept.insert(-1, {"event": "curvature", "step": steps, "L": rounded})
    make_folder(folder)
    part = f"-{derived.last}steps" if derived.last < derived.steps else ""  # max_steps is no part of a run's name
    path = folder / f"{record.recipe.run_name()}{part}.jsonl"
    before = read(path) if path.exists() else None
    if before is not None and before.result != record.result:
        raise InputError(f"{path}: another result of this run is there; it stays.  Remove it, or name another folder with --to")
    with written_whole(path) as aside:
        aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return path


def _placeless(line: dict[str, Any]) -> dict[str, Any]:
    if line["event"] not in STARTS:
        return line
    if words := [word.rpartition("=") for word in shlex.split(line.get("command") or "")]:
        line = line | {"command": shlex.join(f"{key}{equals}{_name(value)}" for key, equals, value in words)}
    if recipe := line.get("recipe"):
        data = recipe["data"] | {"dir": _name(recipe["data"]["dir"])}
        line = line | {"recipe": recipe | {"out": _name(recipe["out"]), "data": data}}
    return line


def _name(path: str) -> str:
    """The last part of an absolute path."""
    return Path(path).name if Path(path).is_absolute() else path


def but_seed(recipe: Recipe) -> str:
    """What decides a run's result, but for its seed."""
    spelled = dataclasses.replace(recipe, seed=0).spelled()
    options = MOMENTUM if recipe.solver == "momentum" else {}
    return json.dumps(options | spelled, sort_keys=True)
