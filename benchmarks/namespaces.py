"""Hosts made of network namespaces on this machine, with a network between them that is as slow as wanted.  Needs root."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.relay import MTU, address
from legw_hpc.errors import InputError
from legw_hpc.launcher import local_ranks

ROOT = Path(__file__).parents[1]

# A shell line in a host: a network and a host name of its own, so that MPI takes it for another machine.
_AGENT = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
host=${1##*.}; shift
exec ip netns exec "NAME$((host - 1))" unshare --uts sh -c "hostname NAME$((host - 1)); $*"
"""
# Ranks meet by TCP, and sum in a ring, so that the algorithm is known.
_MPI = {
    "btl": "tcp,self",
    "coll_tuned_use_dynamic_rules": "1",
    "coll_tuned_allreduce_algorithm": "4",
    "plm_rsh_agent": "AGENT",
}


@dataclass(frozen=True)
class Hosts:
    """Several hosts that are up.

    Attributes:
        names: of their namespaces.
        agent: a command that runs a shell line on one: AGENT ADDRESS LINE.
    """

    names: tuple[str, ...]
    agent: Path

    def run(self, command: Sequence[str], timeout: float) -> str:
        """One rank of a command on every host; what they print.

        Raises:
            RuntimeError: it failed, or was not done in time.
        """
        (mpirun, *_), environment = local_ranks(1)
        environment |= {f"OMPI_MCA_{key}": value.replace("AGENT", str(self.agent)) for key, value in _MPI.items()}
        environment |= {"PRTE_MCA_plm_ssh_agent": str(self.agent), "PYTHONPATH": str(ROOT)}
        hosts = ",".join(f"{address(host)}:1" for host in range(len(self.names)))
        line = [mpirun, "-np", str(len(self.names)), "--host", hosts, "--map-by", "node", "-x", "PYTHONPATH", *command]
        process = subprocess.Popen(
            [self.agent, address(0), shlex.join(line)], env=environment, cwd=ROOT, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            out, faults = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.end()
            process.communicate()
            raise RuntimeError(f"{shlex.join(command)}: not done after {timeout:g} s") from None
        if process.returncode:
            raise RuntimeError(f"{shlex.join(command)}: exit code {process.returncode}\n{faults[-3000:]}")
        return out

    def end(self) -> None:
        """End whatever runs on them."""
        for name in self.names:
            for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


def missing() -> str:
    """What this machine lacks for it; nothing if it can."""
    if os.geteuid():
        return "not root"
    if absent := [tool for tool in ("ip", "unshare") if shutil.which(tool) is None]:
        return f"no {' and no '.join(absent)}"
    if not os.access("/dev/net/tun", os.W_OK):
        return "no /dev/net/tun"
    name = f"legw{os.getpid()}t"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return "network namespaces are not allowed"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


@contextlib.contextmanager
def hosts(count: int, alpha: float, beta: float) -> Iterator[Hosts]:
    """Hosts, until the block ends; what then still runs on them is ended.

    Args:
        alpha: seconds from one to another.
        beta: seconds a byte that leaves one.

    Raises:
        InputError: this machine cannot.
    """
    if why := missing():
        raise InputError(f"hosts of network namespaces: {why}")
    name = f"legw{os.getpid() % 100000}n"  # a device's name has at most 15 characters
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "benchmarks.relay", name, str(count), repr(alpha), repr(beta)]
        relay = stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        stack.callback(relay.kill)
        assert relay.stdout is not None
        if relay.stdout.readline() != "ready\n":
            raise InputError("hosts of network namespaces: the relay did not start")
        for host in range(count):
            one = f"{name}{host}"
            _ip(f"netns add {one}")
            stack.callback(_ip, f"netns del {one}")
            _ip(f"link set {one} netns {one}")
            _ip(f"-n {one} link set lo up")
            _ip(f"-n {one} address add {address(host)}/24 dev {one}")
            _ip(f"-n {one} link set {one} mtu {MTU} up")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="legw-hosts-")))
        agent = folder / "agent"
        agent.write_text(_AGENT.replace("NAME", name))
        agent.chmod(0o755)
        up = Hosts(tuple(f"{name}{host}" for host in range(count)), agent)
        stack.callback(up.end)
        yield up


def _ip(words: str) -> None:
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"ip {words}: {done.stderr.strip()}")
