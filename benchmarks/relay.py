"""A network between namespaces of this host, of any latency and bandwidth: `tc netem` for kernels without it.

    python -m benchmarks.relay NAME HOSTS ALPHA BETA

makes the TUN devices NAME0, NAME1, ... of hosts 10.77.0.1, 10.77.0.2, ... and carries their packets until it is ended.  A packet
is taken when the one before has left, at BETA seconds a byte, and arrives ALPHA seconds after it has left itself.  Until it is
taken it stays with its host, whose TCP then keeps its queue short, as it does for a real adapter: in a queue without
end acknowledgements wait behind data, and two hosts that send to each other got half the bandwidth (measured).
The standard library alone: it starts at once.  Needs root.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import select
import struct
import sys
import time

MTU = 16000  # few packets: each costs some 30 us here
SLACK = 2e-3  # seconds by which a packet may be taken late without the next ones being so
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def address(host: int) -> str:
    """Of a host, counted from 0."""
    return f"10.77.0.{host + 1}"


class Egress:
    """When a host's packets are taken, and when they arrive.

    Args:
        alpha: seconds on the way.
        beta: seconds a byte.

    Attributes:
        free: when the next packet may be taken.
    """

    def __init__(self, alpha: float, beta: float):
        self._alpha, self._beta, self.free = alpha, beta, 0.0

    def arrival(self, now: float, size: int) -> float:
        """Of a packet that is taken now, at `free` or later."""
        self.free = max(self.free, now - SLACK) + size * self._beta
        return max(now, self.free) + self._alpha


def carry(devices: list[int], alpha: float, beta: float) -> None:
    """Read, hold back, write, for ever.

    Args:
        devices: file descriptors, in the order of the hosts; not blocking.
    """
    clock = time.monotonic
    egress = {device: Egress(alpha, beta) for device in devices}
    by_address = {bytes(map(int, address(host).split("."))): device for host, device in enumerate(devices)}
    waiting: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        now = clock()
        while waiting and waiting[0][0] <= now:
            _, _, to, packet = heapq.heappop(waiting)
            with contextlib.suppress(OSError):  # the host has gone
                os.write(to, packet)
        free = [device for device in devices if egress[device].free <= now]
        events = [one.free for one in egress.values() if one.free > now] + [first[0] for first in waiting[:1]]
        ready, _, _ = select.select(free, [], [], max(0.0, min(events) - clock()) if events else None)
        for device in ready:
            with contextlib.suppress(OSError):
                packet = os.read(device, MTU + 100)
                to = by_address.get(packet[16:20], -1)  # IPv4's destination
                if to >= 0:
                    number += 1
                    heapq.heappush(waiting, (egress[device].arrival(clock(), len(packet)), number, to, packet))


def tun(name: str) -> int:
    """The file descriptor of a new TUN device.

    Raises:
        OSError: no /dev/net/tun, or not root.
    """
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def main() -> None:
    name, hosts, alpha, beta = sys.argv[1:]
    devices = [tun(f"{name}{host}") for host in range(int(hosts))]
    with contextlib.suppress(OSError):  # before the ranks, which poll: a late packet is a slower network
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print("ready", flush=True)
    carry(devices, float(alpha), float(beta))


if __name__ == "__main__":
    main()
