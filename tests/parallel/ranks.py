"""Run a function on real MPI ranks from plain pytest, and name the rank that fails.

`on_ranks(3, "programs:sums", ...)` starts three processes under mpirun; each calls the function with
the keyword arguments and writes what it returns, or its traceback, to a file of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pytest

from legw_hpc.launcher import launched, local_ranks

ROOT = Path(__file__).resolve().parents[2]

LAUNCHERS = {b"mpirun", b"prterun", b"srun", b"timeout"}
needs_mpi = pytest.mark.mpi  # see tests/conftest.py


def on_ranks(ranks: int, function: str, timeout: float = 120, **arguments: Any) -> list[Any]:
    """What the function returned on every rank, in order; fails the test with the rank's name.

    Args:
        ranks: more than there are cores are fine (oversubscribed).
        function: "module:name" in this folder.
        timeout: seconds, after which all ranks are ended.
        arguments: what JSON holds.
    """
    with tempfile.TemporaryDirectory() as out:
        words = [sys.executable, "-m", "tests.parallel.ranks", function, out, json.dumps(arguments)]
        code, said = launch(ranks, words, timeout)
        results = []
        answered = {rank for rank in range(ranks) if (Path(out) / f"{rank}.json").exists()}
        # A rank with an error first, or the one that mpirun saw die: it ends the others, which then give no answer.
        died = re.search(r"process rank (\d+) .*?exited on\s+signal", said, re.S)
        for rank in sorted(range(ranks), key=lambda rank: (rank not in answered, not died or rank != int(died[1]))):
            path = Path(out) / f"{rank}.json"
            if rank not in answered:
                pytest.fail(f"rank {rank} of {ranks} gave no answer; mpirun ended with {code}:\n{said[-3000:]}")
            answer = json.loads(path.read_text())
            if "error" in answer:
                pytest.fail(f"rank {rank} of {ranks} failed:\n{answer['error']}")
            results.append(answer["result"])
        assert code == 0, said
        return results


def launch(ranks: int, words: list[str], timeout: float = 120, cwd: Path = ROOT) -> tuple[int, str]:
    """Run a command on ranks; its exit code, and stdout and stderr together.  Leaves no process behind."""
    command, environment = local_ranks(ranks)
    environment["PYTHONPATH"] = str(ROOT)
    process = subprocess.Popen(
        [*command, *words], env=environment, cwd=cwd, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # mpirun ends its ranks
        try:
            said, _ = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            forget_launcher(process.pid)
        pytest.fail(f"{ranks} ranks did not end within {timeout} s:\n{said[-3000:]}")
    return process.returncode, said


def forget_launcher(pid: int) -> None:
    """Remove what an mpirun that was killed leaves, once it is gone.

    Open MPI 5 keeps its sockets' names in /tmp/ompi.PID; a later launcher that gets the same number finds them there, says that
    "the PMIx server's listener thread failed to start", and ends with 213.
    """
    shutil.rmtree(Path(tempfile.gettempdir()) / f"ompi.{pid}", ignore_errors=True)


def ranks_of(out: Path) -> list[int]:
    """Process numbers of the ranks that train into a folder, rank 0 first."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            values = [v.split("=", 1) for v in (entry / "environ").read_text(errors="replace").split("\0") if "=" in v]
        except OSError:
            continue
        launch = launched(dict(values))  # type: ignore[arg-type]
        if (
            f"out={out}".encode() in words
            and {b"legw_hpc", b"legw-hpc"} & {word.rpartition(b"/")[2] for word in words}
            and "-np" not in words[:3]
            and launch.size > 1
        ):
            found[launch.rank] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


def main() -> None:
    """One rank: call the function, leave the answer in OUT/RANK.json."""
    function, out, arguments = sys.argv[1:]
    module, name = function.split(":")
    path = Path(out) / f"{launched().rank}.json"
    try:
        result = getattr(importlib.import_module(f"tests.parallel.{module}"), name)(**json.loads(arguments))
        path.write_text(json.dumps({"result": result}))
    except BaseException:
        path.write_text(json.dumps({"error": traceback.format_exc()}))
        os._exit(1)  # the others may wait for this rank in a collective


if __name__ == "__main__":
    main()
