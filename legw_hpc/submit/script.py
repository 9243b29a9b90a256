"""What job scripts of both schedulers have in common, as lines of bash.

Variables of a script: job (its id), nodes, ranks (per node), link (which run of the chain this is),
chain (how many there may be), work (a folder of its own), launch (the command that starts the ranks).
"""

from __future__ import annotations

import shlex

from legw_hpc.errors import EXIT_RESUME
from legw_hpc.submit import launch, program
from legw_hpc.submit.job import Job
from legw_hpc.submit.program import refuse


def header(job: Job) -> list[str]:
    """After the directives."""
    return [f"# legw-hpc submit, machine {job.machine.name}: {job.machine.description}; see jobs/README.md.", "set -eo pipefail"]


def environment(job: Job) -> list[str]:
    """The machine's set-up, variables, and legw-hpc on the PATH."""
    machine = job.machine
    exported = {
        # PBS would give a rank all the cores of its chunk; a recipe's threads=N wins.
        "OMP_NUM_THREADS": str(job.threads),
        **launch.environment(machine),
        **machine.environment,
    }
    return [
        *machine.setup,
        *(f"export {key}={shlex.quote(str(value))}" for key, value in exported.items()),
        *program.found(job),
    ]


def exported_names(job: Job) -> list[str]:
    """Of the variables that ranks on other hosts need, where the launcher does not carry all."""
    return ["PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "OMP_NUM_THREADS", *job.machine.environment]


def arguments(job: Job, task: str) -> list[str]:
    """Recipe and overrides as the script's "$@".

    Args:
        job: one task, or many, or none: the arguments that the script was given.
        task: the variable with the number of an array's task.
    """
    if not job.tasks:
        return [f"[ $# -gt 0 ] || {refuse('this script wants the arguments RECIPE key=value ...')}"]
    quoted = [" ".join(map(shlex.quote, words)) for words in job.tasks]
    if not job.array:
        return [f"set -- {quoted[0]}"]
    cases = [f"    {number}) set -- {words} ;;" for number, words in enumerate(quoted)]
    return [f"case ${task} in", *cases, f"    *) {refuse(f'the array has no task ${task}')} ;;", "esac"]


# As a shell has it of TERM: it tells the rest of a chain nothing, which goes on.
KILLED = 143


def links(job: Job) -> list[str]:
    """Stop where the chain has ended."""
    if job.machine.chain == "ahead" and job.chain > 1:
        return [
            "# All jobs of the chain are queued; those after the end of the run have nothing to do.",
            f'before=$(cat "$code" 2>/dev/null || echo {EXIT_RESUME})',
            f'if [ "$before" != {EXIT_RESUME} ]; then echo "the run has ended with exit code $before"; exit 0; fi',
            at_exit(job),
            f"trap 'exit {KILLED}' TERM  # else bash would tell 0",
        ]
    return [f'[ "$link" -le "$chain" ] || {refuse("run $link of at most $chain: not started", EXIT_RESUME)}']


def at_exit(job: Job, *more: str) -> str:
    """The trap of the script's end; a later one takes its place.

    Of a chain that is queued ahead it tells the jobs behind how this one ended, whatever it ended in: the layout, a copy,
    the training, also a rank that was killed.  The end of this script by TERM (the walltime) tells nothing, and the next one
    goes on.

    Args:
        more: commands besides.
    """
    ahead = job.machine.chain == "ahead" and job.chain > 1
    commands = [*([f'rc=$?; [ "$rc" = {KILLED} ] || echo "$rc" >"$code"'] if ahead else []), *more]
    return f"trap {shlex.quote('; '.join(commands))} EXIT"


def tell(job: Job, variables: str) -> list[str]:
    """What a result must be able to name later."""
    return [
        f'echo "$(date -Is), machine {job.machine.name}, job $job, run $link of at most $chain"',
        'echo "$nodes nodes x $ranks ranks x $OMP_NUM_THREADS threads"',
        'printf "legw-hpc train"; printf " %q" "$@"; echo',
        f"env | sed -nE '/^SLURM_JWT=/d; /^({variables}|OMP|KMP|HOROVOD|HDF5|I_MPI|OMPI|CUDA)_/p' | sort",
        f"{program.words(job).replace('legw-hpc', 'python')} -c "
        "'from legw_hpc import runlog; print(runlog.versions(), runlog.commit())' || true",
    ]


def layout() -> list[str]:
    """Prove where the ranks are: some launchers put all on the first host in silence."""
    return [
        "# Some launchers put all ranks on the first host in silence: prove where they are before anything is trained.",
        "# A line of more than one word is the launcher's own.",
        "layout=$(\"${launch[@]}\" hostname | awk 'NF == 1' | sort | uniq -c) ||",
        f"    {refuse('the launcher cannot start ranks on these nodes; nothing trained')}",
        'echo "ranks and hosts:"; echo "$layout"',
        'awk -v nodes="$nodes" -v ranks="$ranks" \\',
        "    '$1 != ranks { bad = 1 } END { exit bad || NR != nodes }' <<<\"$layout\" ||",
        f"    {refuse('expected $ranks ranks on each of $nodes nodes; nothing trained')}",
    ]


def logs(job: Job) -> list[str]:
    """The output of a script in jobs/ into a folder, which no scheduler would make; `submit` names one that is there."""
    if job.tasks:
        return []
    return [
        "# The output goes on in logs/, which no scheduler would make.",
        'output=$(readlink "/proc/$$/fd/1" || true) name=${output##*/}',
        'if [ -f "$output" ] && [ "${output%/*}" = "$(pwd -P)" ]; then',
        '    mkdir -p logs && mv "$output" "logs/${name%.out}-$link.out"',
        "fi",
    ]


def warned_too_early() -> str:
    """A rank that had not yet got so far as to take the warning dies of it (128 + USR1): nothing is lost, the chain goes on."""
    return f'[ "$rc" != 138 ] || rc={EXIT_RESUME}'


def copies(job: Job) -> list[str]:
    """What goes to node-local storage first; nothing is left of it if that fails."""
    lines = [*program.unpack(job), *_stage(job)]
    if not lines:
        return []
    return [
        "copies=()",
        'clean() { [ ${#copies[@]} = 0 ] || timeout 60 "${launch[@]}" rm -rf "${copies[@]}" || true; }',
        *lines,
    ]


def _stage(job: Job) -> list[str]:
    """Copy the shards to node-local storage, checked; data.dir then names the copy."""
    if job.tasks and not job.stage:
        return []
    return [
        f"stage={shlex.quote(job.stage)}" if job.tasks else "stage=${STAGE:-}  # a data folder, to be copied to every node",
        'if [ -n "$stage" ]; then',
        f'    staged="{job.machine.local}/legw-${{job//[^A-Za-z0-9]/-}}-$link"',
        '    copies+=("$staged")',
        f'    "${{launch[@]}}" {program.words(job)} data stage "$stage" "$staged" || {program.CLEAN_AND_END}',
        '    set -- "$@" data.dir="$staged"',
        "fi",
    ]


def clean(job: Job) -> list[str]:
    """Leave nothing on the nodes; in a time that does not endanger what follows."""
    return ["clean"] if copies(job) else []


def end(job: Job, go_on: list[str], after: list[str]) -> list[str]:
    """Go on only after a checkpoint: never after a failure or a divergence.

    Args:
        go_on: lines, under `if`.
        after: lines behind them.
    """
    if job.machine.chain == "ahead":
        return [*after, 'exit "$rc"']
    return [
        f'if [ "$rc" = {EXIT_RESUME} ] && [ "$link" -lt "$chain" ]; then', *(f"    {line}" for line in go_on), "fi",
        *after, 'exit "$rc"',
    ]  # fmt: skip


# What a scheduler's refusal of the next run comes to: the code of this one stays.
NOT_QUEUED = 'echo >&2 "legw-hpc: the next run could not be queued; the same command goes on"'
