"""Faults injected into training, each followed by a resume; the weights at the end must be those of an undisturbed run.

A life is one run of one subject on so many ranks, from its first step to its last, with a fault in each part of it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch

from legw_hpc import runlog
from legw_hpc.errors import EXIT_DONE, EXIT_INPUT, EXIT_STALLED
from tests.faults.job import END_SECONDS, Hang, Job, Missed
from tests.faults.kinds import KINDS, MOUNTED, Fault
from tests.faults.subjects import CHECKPOINT_STEPS, STALL_SECONDS, SUBJECTS, Subject

START_SECONDS = 300.0  # to a step, and to the end of a run that nothing disturbs: 4 ranks, on two cores with other work
FIRST_START_SECONDS = 5.0  # about what a start takes, until one has been seen
DISK_BYTES = 64 << 20


@dataclass
class Tally:
    """What came of the faults of one kind.

    Attributes:
        tried: injected.
        missed: the run had ended before.
        survived: the run went on and ended with the right weights.
        lost: steps that had to be done again, of each.
        seconds: from each fault to the end of all ranks.
        wrong, hung: what should not have been, in words.
    """

    tried: int = 0
    missed: int = 0
    survived: int = 0
    lost: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)


Tallies = dict[str, Tally]


def campaign(
    lives: Sequence[tuple[str, int, Sequence[str]]],
    seed: str,
    told: Callable[[str, Tallies, Sequence[str]], object],
    jobs: int = 1,
) -> tuple[Tallies, list[str]]:
    """Live them all.

    Args:
        lives: subject, ranks and the kinds of its faults in their order.
        seed: of the steps, ranks and bits that are drawn.
        told: of each life, with what is returned so far.
        jobs: lives side by side.

    Returns:
        Tallies by kind, and the kinds that could not be tried here.
    """
    tallies = {kind: Tally() for kind in KINDS}
    left_out: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="legw-faults-") as top, ThreadPoolExecutor(jobs) as pool:
        pairs = sorted({(name, ranks) for name, ranks, _ in lives})
        digests = pool.map(lambda pair: _undisturbed(SUBJECTS[pair[0]], pair[1], Path(top) / f"{pair[0]}-{pair[1]}"), pairs)
        references = dict(zip(pairs, digests, strict=True))

        def live(number: int) -> str:
            name, ranks, kinds = lives[number]
            kinds = sorted(kinds, key=lambda kind: KINDS[kind].moment != "first")
            subject, place, started = SUBJECTS[name], Path(top) / f"life{number}", time.monotonic()
            with _file_system(place, any(kind in MOUNTED for kind in kinds)) as mounted:
                possible = [kind for kind in kinds if mounted or kind not in MOUNTED]
                left_out.update(set(kinds) - set(possible))
                subject.make_data(place / "data")
                _live(subject, ranks, place, possible, references[name, ranks], Random(f"{seed} {number}"), tallies)
            return f"{name}, {ranks} ranks, {len(possible)} faults: {time.monotonic() - started:.0f} s"

        waiting = [pool.submit(live, number) for number in range(len(lives))]
        try:
            for done, future in enumerate(as_completed(waiting), start=1):
                told(f"[{done}/{len(lives)}] {future.result()}, {len(faults(tallies))} wrong so far", tallies, sorted(left_out))
        finally:
            for future in waiting:
                future.cancel()
    return tallies, sorted(left_out)


def _undisturbed(subject: Subject, ranks: int, place: Path) -> str:
    place.mkdir()
    subject.make_data(place / "data")
    job = Job(ranks, subject.words, place)
    try:
        code = job.ended(START_SECONDS)
        assert code == EXIT_DONE, job.said()
        return results(job)
    finally:
        job.clear()


def results(job: Job) -> str:
    """A digest of all that a run's last checkpoint holds of model, optimizer and carried state, and of all metrics in its log."""
    state = torch.load(job.newest(), weights_only=True)
    digest = hashlib.sha256(str(state["step"]).encode())
    for line in runlog.read(job.out):
        if line["event"] == "eval":
            digest.update(json.dumps({key: value for key, value in line.items() if key != "time"}).encode())
    for name in ("model", "optimizer", "carried"):
        for tensor in _tensors(state[name]):
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _tensors(value[key])
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _live(
    subject: Subject, ranks: int, place: Path, kinds: Sequence[str], reference: str, random: Random, tallies: Tallies
) -> None:
    struck: list[str] = []
    job, started = Job(ranks, subject.words, place), FIRST_START_SECONDS
    try:
        for i, kind in enumerate(kinds):
            fault, tally = KINDS[kind], tallies[kind]
            # From after the second checkpoint on: some faults damage the newest, and one must be left.
            first = 2 * CHECKPOINT_STEPS + 1
            begin, end = (first + (subject.steps - first) * part // (len(kinds) + 1) for part in (i, i + 1))
            if fault.moment != "first" and not job.reaches(random.randrange(begin, end), START_SECONDS):
                tally.missed += 1
                continue
            try:
                if fault.moment == "start":
                    KINDS["a rank killed"].strike(job, random)
                    job.ended(END_SECONDS)
                    job = job.again()
                    time.sleep(random.uniform(0, started))
                job, started = _struck(job, fault, random, tally)
                struck.append(kind)
            except (Missed, ProcessLookupError):  # the run has ended, or just now
                tally.missed += 1
            except Hang as error:
                tally.hung.append(str(error))
                job.clear()
                job = job.again()
            except AssertionError as error:
                tally.wrong.append(f"{subject.name}, {ranks} ranks: {error}")
                job.clear()
                return
        code = job.ended(START_SECONDS)  # of what is left of the run
        same = code == EXIT_DONE and results(job) == reference
        for kind in struck:
            tallies[kind].survived += same
        if not same:
            why = f"{subject.name}, {ranks} ranks, after {', '.join(struck)}: "
            tallies[kinds[-1]].wrong.append(
                why + ("other weights or metrics" if code == EXIT_DONE else f"ended with {code}: {job.said()[-1500:]}")
            )
    except Hang as error:
        tallies[kinds[-1]].hung.append(str(error))
    finally:
        job.clear()


def _struck(job: Job, fault: Fault, random: Random, tally: Tally) -> tuple[Job, float]:
    """The job that goes on after a fault, and the seconds that its start took."""
    said = fault.strike(job, random)
    tally.tried += 1
    struck = time.monotonic()
    more = START_SECONDS if fault.moment == "start" else STALL_SECONDS if EXIT_STALLED in fault.ends else 0.0
    code = job.ended(END_SECONDS + more)  # one that is told to stop as it starts stops at its first step
    tally.seconds.append(time.monotonic() - struck)
    assert code in fault.ends if fault.ends else code != EXIT_DONE, f"ended with {code}, not {fault.ends}: {job.said()[-1500:]}"
    assert re.search(said, " ".join(job.said().split())), f"it did not say {said!r}: {job.said()[-1500:]}"
    with fault.damaged(job, random):
        before = job.step()
        if fault.refused:
            refused = job.again()
            assert refused.ended(START_SECONDS) == EXIT_INPUT, f"not refused: {refused.said()[-1500:]}"
            assert fault.refused in refused.said(), f"{fault.refused!r} is not named: {refused.said()[-1500:]}"
        else:
            job, started = _again(job)
    if fault.refused:
        job, started = _again(job)
    assert fault.told in job.said(), f"it did not say {fault.told!r}: {job.said()[-1500:]}"
    tally.lost.append(before - job.resumed())
    return job, started


def _again(job: Job) -> tuple[Job, float]:
    """The same command, seen to go on; and after how many seconds."""
    job, began = job.again(), time.monotonic()
    while job.runs() and job.resumed() < 0:
        if time.monotonic() - began > START_SECONDS:
            raise Hang(f"no start after a fault within {START_SECONDS:g} s:\n{job.said()[-2000:]}")
        time.sleep(0.01)
    return job, time.monotonic() - began


@contextmanager
def _file_system(place: Path, wanted: bool) -> Iterator[bool]:
    """A folder, of a small file system in memory if that is wanted and allowed; whether it is."""
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "legw-faults", str(place)]
    mounted = wanted and shutil.which("mount") is not None and subprocess.run(words, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def table(tallies: Tallies, left_out: Sequence[str]) -> str:
    """What came of it, as markdown."""
    lines = [
        "| fault | tried | survived | steps lost, median (most) | seconds to the end of all ranks, median (most) |",
        "|---|--:|--:|--:|--:|",
    ]
    for kind, tally in tallies.items():
        if tally.tried:
            again = f"{statistics.median(tally.lost):g} ({max(tally.lost)})" if tally.lost else ""
            seconds = f"{statistics.median(tally.seconds):.1f} ({max(tally.seconds):.1f})" if tally.seconds else ""
            lines.append(f"| {kind} | {tally.tried} | {tally.survived} | {again} | {seconds} |")
    every = tallies.values()
    tried, survived = sum(t.tried for t in every), sum(t.survived for t in every)
    hung, wrong = sum(len(t.hung) for t in every), sum(len(t.wrong) for t in every)
    lost = sum(sum(t.lost) for t in every)
    lines += ["", f"{tried} faults tried, {survived} survived, {lost} steps lost in all, {hung} hangs, {wrong} wrong results."]
    if missed := sum(t.missed for t in every):
        lines += [f"{missed} more came too late: the run had ended."]
    lines += [f"Not tried here: {', '.join(left_out)}."] if left_out else []
    return "\n".join(lines) + "\n"


def faults(tallies: Tallies) -> list[str]:
    """All that should not have been."""
    return [f"{kind}: {text}" for kind, tally in tallies.items() for text in [*tally.wrong, *tally.hung]]
