"""A job as the text of a PBS script."""

from __future__ import annotations

import shlex

from legw_hpc.submit import launch, script
from legw_hpc.submit.job import Job
from legw_hpc.submit.machine import clock


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
        *(["task=${LEGW_TASK:-${PBS_ARRAY_INDEX:-}}"] if job.array else []),
        *([code] if ahead else []),
        *script.links(job),
        *([] if job.tasks else _GIVEN),
        *script.arguments(job, "task"),
        "work=$(mktemp -d)",
        "trap 'rm -rf \"$work\"' EXIT",
        *_hosts(job),
        f"launch=({launch.command(job.machine)}{_HOSTS.get(job.machine.pbs.launcher, '')})",
        *script.tell(job, "PBS"),
        "",
        *script.layout(),
        *script.stage(job),
        "# PBS has no warning before the end of the walltime, and its TERM leaves too little time for a checkpoint.",
        *_walltime(job),
        f"left=$((walltime - {job.machine.warning_seconds} - SECONDS))",
        'if [ "$left" -lt 1 ]; then echo >&2 "no time left to train"; exit 2; fi',
        "rc=0",
        f'timeout --preserve-status --signal=USR1 --kill-after={job.machine.warning_seconds} "$left" \\',
        '    "${launch[@]}" legw-hpc train "$@" || rc=$?',
        *script.unstage(job),
        *script.end(job, _successor(job)),
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
    """Open MPI without TM knows nothing of PBS, and counts a host that is named once as all its cores."""
    if job.machine.pbs.launcher == "hydra":
        return ['sort "$PBS_NODEFILE" | uniq -c | awk \'{ print $2 ":" $1 }\' >"$work/hosts"']
    if job.machine.pbs.launcher != "mpirun":
        return []
    names = " ".join(script.exported_names(job))
    return [
        "hosts=()",
        'if [[ "$(ompi_info 2>/dev/null; prte_info 2>/dev/null)" != *"plm: tm"* ]]; then',
        "    # This Open MPI was built without PBS: unaided it starts all ranks on the first host.  Hosts with slots, and",
        "    # an agent in the place of ssh; pbs_tmrsh starts no shell at the far end, which mpirun counts on.",
        "    awk '!n[$1]++ { o[++k] = $1 } END { for (i = 1; i <= k; i++) print o[i] \" slots=\" n[o[i]] }' \\",
        '        "$PBS_NODEFILE" >"$work/hosts"',
        '    hosts=(--hostfile "$work/hosts")',
        '    if tmrsh=$(command -v pbs_tmrsh); then',
        '        cat >"$work/agent" <<AGENT',
        "#!/bin/sh",
        "host=\\$1; shift",
        'exec $tmrsh "\\$host" /bin/sh -c "\\$*"',
        "AGENT",
        '        chmod +x "$work/agent"',
        "        # No tree: the agent is on this host alone.  Open MPI 4 reads the first two, 5 the others.",
        '        export OMPI_MCA_plm_rsh_agent=$work/agent OMPI_MCA_plm_rsh_no_tree_spawn=1',
        '        export PRTE_MCA_plm_ssh_agent=$work/agent PRTE_MCA_plm_ssh_no_tree_spawn=1',
        "    fi",
        "fi",
        "# Variables reach the other hosts only by name.",
        "forward=()",
        f"for name in {names}; do [ -z \"${{!name+set}}\" ] || forward+=(-x \"$name\"); done",
    ]  # fmt: skip


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
            'variables="LEGW_LINK=$((link + 1)),CHAIN=$chain,ARGS${STAGE:+,STAGE}${LEGW_BIN:+,LEGW_BIN}"',
            f'qsub -l select="$nodes:{chunk(job)}" -l walltime="$walltime" -v "$variables" {file}',
        ]
    task = ",LEGW_TASK=$task" if job.array else ""
    return [f'qsub -v "LEGW_LINK=$((link + 1)){task}" {file}']
