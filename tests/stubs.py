"""Stubs in the place of a cluster's commands, and a job script run on the first of its nodes."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Stubs:
    """A folder of commands that write down their arguments; `says` gives one a body of its own."""

    def __init__(self, folder: Path):
        self.bin, self.folder = folder / "bin", folder
        self.bin.mkdir()

    def says(self, name: str, body: str = "") -> None:
        record = f'printf "%s\\0" {name} "$@" >>{self.folder}/calls; printf "\\n\\0" >>{self.folder}/calls'
        (self.bin / name).write_text(f"#!/bin/bash\n{record}\n{body}\n")
        (self.bin / name).chmod(0o755)

    def calls(self, name: str) -> list[list[str]]:
        path = self.folder / "calls"
        lines = path.read_text().split("\0\n\0") if path.exists() else []
        return [words[1:] for line in lines if (words := line.split("\0"))[0] == name]

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.folder), "LEGW_BIN": str(self.bin)}


# Start the program as a launcher does that puts ranks where it should, or all on the first host.
RIGHT = 'while [ "$1" != hostname ] && [ "$1" != legw-hpc ] && [ "$1" != rm ]; do shift; done\n' + (
    'if [ "$1" = hostname ]; then echo "TACC:  Starting up job 7"; for h in $HOSTS; do echo $h; done; else "$@"; fi'
)
WRONG = RIGHT.replace("echo $h", "echo n1")


def run(text: str, stubs: Stubs, nodes: int = 2, domain: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """A script as on the first of its nodes, n1; their names in the nodefile end in `domain`."""
    hosts = [f"n{i + 1}{domain}" for i in range(nodes) for _ in range(2)]
    (stubs.folder / "nodefile").write_text("".join(f"{host}\n" for host in hosts))
    told = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_SUBMIT_DIR": str(stubs.folder), "PBS_JOBID": "7.pbs",
        "PBS_O_WORKDIR": str(stubs.folder), "PBS_NODEFILE": str(stubs.folder / "nodefile"), "HOSTS": " ".join(hosts),
    }  # fmt: skip
    file = stubs.folder / "script"
    file.write_text(text)
    file.chmod(0o755)
    environment = stubs.environment | told | variables
    return subprocess.run([str(file)], env=environment, cwd=stubs.folder, capture_output=True, text=True, timeout=60)
