"""A job as the text of a SLURM script."""

from __future__ import annotations

import re
import shlex

from legw_hpc.errors import EXIT_DIVERGED, EXIT_INPUT, EXIT_RESUME
from legw_hpc.submit import launch, program, script
from legw_hpc.submit.job import Job
from legw_hpc.submit.machine import clock

# SLURM gives a silent node up after SlurmdTimeout, 300 s by default.
LOST_SECONDS = 600


def directives(job: Job) -> list[str]:
    """The #SBATCH lines, without that word."""
    machine, slurm = job.machine, job.machine.slurm
    output = "%A_%a.out" if job.array else "%j.out"
    lines = [
        f"--job-name={job.name}",
        f"--nodes={job.nodes}",
        f"--ntasks-per-node={machine.ranks}",
        f"--cpus-per-task={machine.cpus_per_rank}",
        f"--time={clock(job.seconds)}",
        # To the script alone (B:), which hands it on: mpirun does not forward one sent to the step.
        f"--signal=B:USR1@{job.machine.warning_seconds}",
        "--requeue" if job.chain > 1 and slurm.chain == "requeue" else "--no-requeue",
        "--open-mode=append",
        # SLURM does not make the folder: without it the job dies in silence.
        f"--output={job.file.parent}/{output}" if job.tasks else f"--output=%x-{output}",
    ]
    if job.array:
        lines.append(f"--array={job.numbers}")
    if slurm.exclusive:
        lines.append("--exclusive")
        # All of a node's memory, which --exclusive does not give: a site may have a DefMemPerNode.  TACC refuses it.
        if slurm.launcher != "ibrun" and not any(re.match(r"--mem(-per-\w+)?\b(?!-)", line) for line in slurm.options):
            lines.append("--mem=0")
    if slurm.launcher == "ibrun" and job.tasks:
        lines.append(f"--ntasks={job.ranks}")  # TACC wants it besides the nodes
    if job.account:
        lines.append(f"--account={job.account}")
    if partition := job.partition or slurm.partition:
        lines.append(f"--partition={partition}")
    return lines + slurm.options


def text(job: Job) -> str:
    """The whole script."""
    code = f"code={shlex.quote(str(job.file.with_suffix('')))}{'-$SLURM_ARRAY_TASK_ID' if job.array else ''}.code"
    # The last task's own id is that of the whole array, and a requeue of it would be of all tasks.
    job_id = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if job.array else "$SLURM_JOB_ID"
    srun = job.machine.slurm.launcher == "srun"
    chain = str(job.chain) if job.tasks else f"${{CHAIN:-{job.chain}}}"
    ahead = job.machine.slurm.chain == "ahead" and job.chain > 1
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {line}" for line in directives(job)),
        *script.header(job),
        'cd "$SLURM_SUBMIT_DIR"',
        "# The warning before the end of the walltime: the ranks write a checkpoint and end with 85.",
        "run='' asked=''",
        # A launcher that has just been forked would lose it.
        "trap 'asked=1; [ -z \"$run\" ] || { sleep 1; kill -USR1 \"$run\" 2>/dev/null || true; }' USR1",
        "export SLURM_EXPORT_ENV=ALL  # to srun's ranks: SBATCH_EXPORT=NONE, or --export=NONE, would hold for them too",
        *script.environment(job),
        "",
        f"job={job_id} nodes=$SLURM_JOB_NUM_NODES ranks={job.machine.ranks}",
        f"link=$((${{SLURM_RESTART_COUNT:-0}} + 1)) chain={chain}",
        *([code] if ahead else []),
        *script.logs(job),
        *script.links(job),
        *script.arguments(job, "SLURM_ARRAY_TASK_ID"),
        f"launch=({launch.command(job.machine)})",
        *script.tell(job, "SLURM"),
        "",
        # Nodes copy at their own pace.
        *(["export SLURM_WAIT=0  # of srun: no limit between the ends of the first rank and the last"] if srun else []),
        *script.layout(),
        *script.copies(job),
        "rc=85",
        'if [ -z "$asked" ]; then',
        "    # In the background: bash runs a trap only between commands, or in `wait`, which then returns over 128.",
        *(["    export SLURM_WAIT=20  # seconds: a rank that has died ends the others"] if srun else []),
        f'    "${{launch[@]}}" {program.words(job)} train "$@" & run=$!',
        '    [ -z "$asked" ] || { sleep 1; kill -USR1 "$run" 2>/dev/null || true; }  # it came between the two',
        '    while rc=0; wait "$run" || rc=$?; [ "$rc" -gt 128 ] && kill -0 "$run" 2>/dev/null; do :; done',
        "fi",
        "trap '' USR1",
        # The loop's last `wait` may have been ended by the trap.
        '[ -z "$run" ] || { rc=0; wait "$run" || rc=$?; }',
        script.warned_too_early(),
        *(_node_lost(job) if job.chain > 1 else []),
        *script.clean(job),
        *script.end(job, ["# Nothing after it is sure to run.", f'scontrol requeue "$job" || {script.NOT_QUEUED}'], []),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _node_lost(job: Job) -> list[str]:
    """The ranks of a node that is gone end before the controller notices (measured: 5 s, and 40 s): ask the nodes."""
    told = f"0 | {EXIT_INPUT} | {EXIT_DIVERGED} | {EXIT_RESUME}"
    what, then = "waiting for SLURM to notice, which starts this job again", f"sleep {LOST_SECONDS}"
    if job.machine.slurm.chain == "ahead":
        what, then = "the next job of the chain goes on", f"exit {script.KILLED}"
    return [
        f'case "$rc" in {told}) ;; *)',
        '    if ! timeout 60 srun --mpi=none -n "$nodes" --ntasks-per-node=1 true; then',
        f'        echo >&2 "legw-hpc: a node does not answer; {what}"',
        f"        {then}",
        "    fi ;;",
        "esac",
    ]
