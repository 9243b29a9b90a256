"""A job as the text of a PBS script."""

from __future__ import annotations

import shlex

from legw_hpc.errors import EXIT_RESUME
from legw_hpc.submit import launch, program, script
from legw_hpc.submit.job import Job
from legw_hpc.submit.machine import clock
from legw_hpc.submit.record import RECORD


def directives(job: Job) -> list[str]:
    """The #PBS lines, without that word."""
    pbs = job.machine.pbs
    lines = [
        f"-N {job.name}",
        f"-l select={job.nodes}:{chunk(job)}",
        f"-l place=scatter{':excl' if pbs.exclusive else ''}",
        f"-l walltime={clock(job.seconds)}",
        "-r n",  # a chain counts its own runs; a job that PBS runs again does not
        # Output as it comes, in one file; by default it is kept until the job ends.
        "-j oe",
        "-k oed",
    ]
    if job.tasks:
        lines.append(f"-o {job.file.parent}/")
    if job.account:
        lines.append(f"-A {job.account}")
    if queue := job.partition or pbs.queue:
        lines.append(f"-q {queue}")
    return lines + pbs.options


def chunk(job: Job) -> str:
    """What one node gives."""
    machine = job.machine
    cpus = machine.ranks * machine.cpus_per_rank
    more = f":{machine.pbs.select}" if machine.pbs.select else ""
    return f"ncpus={cpus}:mpiprocs={machine.ranks}:ompthreads={job.threads}{more}"


def text(job: Job) -> str:
    """The whole script."""
    code = f"code={shlex.quote(str(job.file.with_suffix('')))}{'-$task' if job.array else ''}.code"
    ahead = job.machine.pbs.chain == "ahead" and job.chain > 1
    inside = job.machine.pbs.chain == "inside"
    chain = str(job.chain) if job.tasks else f"${{CHAIN:-{job.chain}}}"
    lines = [
        "#!/bin/bash",
        *(f"#PBS {line}" for line in directives(job)),
        *script.header(job),
        "# PBS starts in $HOME, with its own commands not on the PATH.",
        'cd "$PBS_O_WORKDIR"',
        "PBS_EXEC=${PBS_EXEC:-$(sed -n 's/^PBS_EXEC=//p' /etc/pbs.conf 2>/dev/null || true)}",
        "export PATH=$PATH${PBS_EXEC:+:$PBS_EXEC/bin}",
        *script.environment(job),
        "",
        f'job=$PBS_JOBID nodes=$(sort -u "$PBS_NODEFILE" | wc -l) ranks={job.machine.ranks}',
        f"link=${{LEGW_LINK:-1}} chain={chain}",
        *(["task=${LEGW_TASK:-${PBS_ARRAY_INDEX:-0}}"] if job.array else []),
        *([code] if ahead else []),
        *script.logs(job),
        *script.links(job),
        *([] if job.tasks else _GIVEN),
        *script.arguments(job, "task"),
        *(["out=${!#} run=${out##*/}  # of the last argument: the name of the run's folder"] if job.array and inside else []),
        "work=$(mktemp -d)",
        script.at_exit(job, 'rm -rf "$work"'),
        *_hosts(job),
        f"launch=({launch.command(job.machine)}{_HOSTS.get(job.machine.pbs.launcher, '')})",
        *script.tell(job, "PBS"),
        "",
        *script.layout(),
        *script.copies(job),
        "# PBS has no warning before the end of the walltime, and its TERM leaves too little time for a checkpoint.",
        *_walltime(job),
        f"left=$((walltime - {job.machine.warning_seconds} - SECONDS))",
        f"rc={EXIT_RESUME}  # of one that has no time left",
        'if [ "$left" -gt 0 ]; then',
        "    rc=0",
        f'    timeout --preserve-status --signal=USR1 --kill-after={job.machine.warning_seconds} "$left" \\',
        f'        "${{launch[@]}}" {program.words(job)} train "$@" || rc=$?',
        "fi",
        script.warned_too_early(),
        *script.end(job, _successor(job), script.clean(job)),  # the successor first: little time is left
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


_GIVEN = [
    '# qsub gives a script no arguments; instead: -v ARGS="RECIPE key=value ..."',
    'read -r -a given <<<"${ARGS:-}"',
    'set -- "${given[@]}"',
]

# What a launcher is told of the hosts.
_HOSTS = {"mpirun": ' "${hosts[@]}" "${forward[@]}"', "hydra": ' -f "$work/hosts"'}


def _hosts(job: Job) -> list[str]:
    """Hosts and slots, and a way to start processes there without ssh, for launchers that may know nothing of PBS."""
    if job.machine.pbs.launcher == "hydra":
        return [
            "# Intel MPI's and MPICH's know PBS or not, as they were built: told the hosts, they go by ssh.",
            *_hostfile(":"),
            *_agent(
                "HYDRA_LAUNCHER=rsh HYDRA_LAUNCHER_EXEC=$work/agent",
                # 0: no tree, the agent is on this host alone.
                "I_MPI_HYDRA_BOOTSTRAP=rsh I_MPI_HYDRA_BOOTSTRAP_EXEC=$work/agent I_MPI_HYDRA_BRANCH_COUNT=0",
            ),
        ]
    if job.machine.pbs.launcher != "mpirun":
        return []
    names = " ".join(script.exported_names(job))
    agent = _agent(
        # No tree: the agent is on this host alone.  Open MPI 4 reads the first two, 5 the others.
        "OMPI_MCA_plm_rsh_agent=$work/agent OMPI_MCA_plm_rsh_no_tree_spawn=1",
        "PRTE_MCA_plm_ssh_agent=$work/agent PRTE_MCA_plm_ssh_no_tree_spawn=1",
    )
    return [
        "hosts=()",
        'if [[ "$(ompi_info 2>/dev/null; prte_info 2>/dev/null)" != *"plm: tm"* ]]; then',
        "    # This Open MPI was built without PBS: unaided it starts all ranks on the first host.",
        *(f"    {line}" for line in _hostfile(" slots=")),
        '    hosts=(--hostfile "$work/hosts")',
        *(f"    {line}" for line in agent),
        "fi",
        "# Variables reach the other hosts only by name.",
        "forward=()",
        f'for name in {names}; do [ -z "${{!name+set}}" ] || forward+=(-x "$name"); done',
    ]


def _hostfile(between: str) -> list[str]:
    """A line a host, in PBS's order; `between` its name and its ranks."""
    return [
        f"awk '!n[$1]++ {{ o[++k] = $1 }} END {{ for (i = 1; i <= k; i++) print o[i] \"{between}\" n[o[i]] }}' \\",
        '    "$PBS_NODEFILE" >"$work/hosts"',
    ]


def _agent(*variables: str) -> list[str]:
    """PBS's own remote start in the place of ssh.

    Args:
        variables: NAME=value, by which launchers are told of it.
    """
    return [
        "if command -v pbs_tmrsh >/dev/null; then  # in the place of ssh; but it starts no shell at the far end",
        "    # shellcheck disable=SC2016  # the agent's own variables",
        "    # Open MPI 4 names a host without its domain, pbs_tmrsh knows it as the nodefile does.",
        "    printf '%s\\n' '#!/bin/sh' 'name=$1; shift' 'host=$(grep -m 1 -E \"^$name(\\.|\\$)\" \"$PBS_NODEFILE\")' \\",
        '        \'exec pbs_tmrsh "${host:-$name}" /bin/sh -c "$*"\' >"$work/agent"',
        '    chmod +x "$work/agent"',
        *(f"    export {words}" for words in variables),
        "fi",
    ]


def _walltime(job: Job) -> list[str]:
    """In seconds; that of a script in jobs/ may have been given on qsub's command line, and only qstat knows."""
    if job.tasks:
        return [f"walltime={job.seconds}"]
    return [
        "limit=$(qstat -f \"$PBS_JOBID\" 2>/dev/null | sed -n 's/.*Resource_List.walltime = //p' || true)",
        f"walltime=$(awk -F: '{{ print $1 * 3600 + $2 * 60 + $3 }}' <<<\"${{limit:-{clock(job.seconds)}}}\")",
    ]


def _successor(job: Job) -> list[str]:
    """The owner may not rerun a job: it submits the next one."""
    file = shlex.quote(str(job.file))
    if not job.tasks:
        return [
            f"file=${{LEGW_SCRIPT:-{file}}}  # a copy is known by that name alone: PBS runs one of its own",
            'variables="LEGW_LINK=$((link + 1)),CHAIN=$chain,ARGS"',
            'for name in STAGE UNPACK LEGW_BIN LEGW_SCRIPT; do [ -z "${!name}" ] || variables+=",$name"; done',
            f'qsub -l select="$nodes:{chunk(job)}" -l walltime="$walltime" -v "$variables" "$file" || {script.NOT_QUEUED}',
        ]
    variables, format, of = "LEGW_LINK=$((link + 1))", '{"scheduler": "pbs", "id": "%s"}\\n', ""
    if job.array:
        variables, format, of = f"{variables},LEGW_TASK=$task", format.replace("}", ', "run": "%s"}'), ' "$run"'
    return [
        f'if next=$(qsub -v "{variables}" {file}); then',
        f"    printf '{format}' \"$next\"{of} >>{shlex.quote(str(job.file.parent / RECORD))} || true  # for legw-hpc status",
        f"else {script.NOT_QUEUED}; fi",
    ]
