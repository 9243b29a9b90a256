"""Where a job's ranks have Python and its packages from: the shared environment, a copy of it on each node, or a container.

One rank's start looks up some 26,000 paths, 16,000 of them in the environment (measured: strace, torch 2.13), and a
thousand ranks at once are more than the metadata server of a shared file system bears.  A packed environment
(jobs/pack.sh) is one file, read once a node; a container's image is one file as well.
"""

from __future__ import annotations

import shlex

from legw_hpc.errors import EXIT_INPUT
from legw_hpc.submit.job import Job


def refuse(why: str, code: int = EXIT_INPUT) -> str:
    """A command list that ends the script; `legw-hpc status` finds the line."""
    return f'{{ echo >&2 "legw-hpc: {why}"; exit {code}; }}'


# After a copy that failed.
CLEAN_AND_END = '{ rc=$?; clean; exit "$rc"; }'


def words(job: Job) -> str:
    """What starts legw-hpc, in a script."""
    return '"${inside[@]}" legw-hpc' if _anywhere_else(job) else "legw-hpc"


def found(job: Job) -> list[str]:
    """Put legw-hpc on the PATH, or name the container that has it; see that it is there."""
    if container := job.machine.container:
        inside = " ".join(map(shlex.quote, container))
        return [f"inside=({inside})", f'"${{inside[@]}}" legw-hpc --help >/dev/null || {refuse("not in the container")}']
    path = f"{shlex.quote(job.bin)}:$PATH" if job.bin else "${LEGW_BIN:-$PWD/.venv/bin}:$PATH"
    lines = [f"export PATH={path}", f"command -v legw-hpc >/dev/null || {refuse('not on the PATH')}"]
    return [*lines, *(["inside=()"] if _anywhere_else(job) else [])]


def _anywhere_else(job: Job) -> bool:
    """Than in the shared environment."""
    return bool(job.machine.container or job.unpack or not job.tasks)


def unpack(job: Job) -> list[str]:
    """Unpack an environment of jobs/pack.sh on every node."""
    if job.machine.container or (job.tasks and not job.unpack):
        return []
    return [
        f"packed={shlex.quote(job.unpack)}" if job.tasks else "packed=${UNPACK:-}  # an environment of jobs/pack.sh",
        'if [ -n "$packed" ]; then',
        f'    home="{job.machine.local}/legw-env-${{job//[^A-Za-z0-9]/-}}-$link"',
        '    copies+=("$home")',
        f'    "${{launch[@]}}" bash "$packed" "$home" || {CLEAN_AND_END}',
        '    inside=(env "PATH=$home/bin:$PATH" "PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH}")',
        "fi",
    ]
