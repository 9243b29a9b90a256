"""Seconds of a sum over ranks, by the number of messages, bytes and additions on the longest path.

n is bytes, p ranks; a link takes alpha seconds a message and beta a byte, an addition gamma a byte.
The equations are those of Thakur, Rabenseifner and Gropp 2005, "Optimization of Collective
Communication Operations in MPICH" (IJHPCA 19:1), § 4.5, and of Patarasuk and Yuan 2009, "Bandwidth
Optimal All-reduce Algorithms for Clusters of Workstations" (JPDC 69:2).  Pure Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

ANNOUNCED = 3  # messages in place of one: the announcement, the answer, and it (derived)


@dataclass(frozen=True)
class Link:
    """What joins ranks: a network between nodes, or the memory of one.

    Attributes:
        alpha: seconds a message.
        beta: seconds a byte, of one stream each way.
        gamma: seconds a byte, to add two buffers.
        eager: bytes above which a message is announced and answered before it is sent: ANNOUNCED times alpha.
    """

    alpha: float
    beta: float
    gamma: float = 0.0
    eager: float = math.inf

    def message(self, n: float) -> float:
        """Seconds of one of n bytes."""
        return self.alpha * (ANNOUNCED if n > self.eager else 1) + n * self.beta


def recursive_doubling(n: float, p: int, link: Link) -> float:
    """lg p (alpha + n beta + n gamma): every rank swaps the whole buffer with partners at distance 1, 2, 4 ...

    Ranks above the last power of two hand theirs in first, and get the sum at the end (Thakur et al., § 4.5).
    """
    power = p.bit_length() - 1
    whole = link.message(n)
    return power * (whole + n * link.gamma) + (0 if p == 1 << power else 2 * whole + n * link.gamma)


def rabenseifner(n: float, p: int, link: Link) -> float:
    """2 lg p alpha + 2 (p-1)/p n beta + (p-1)/p n gamma: a reduce-scatter by halving, an allgather by doubling.

    Ranks above the last power of two as in `recursive_doubling`.
    """
    power = p.bit_length() - 1
    halves = [n / (1 << i) for i in range(1, power + 1)]
    pairs = 2 * sum(map(link.message, halves)) + sum(halves) * link.gamma
    return pairs + (0 if p == 1 << power else 2 * link.message(n) + n * link.gamma)


def ring(n: float, p: int, link: Link) -> float:
    """2 (p-1) alpha + 2 (p-1)/p n beta + (p-1)/p n gamma: p pieces go around, once to be summed and once to be told."""
    return (p - 1) * (2 * link.message(n / p) + n / p * link.gamma)


ALGORITHMS: dict[str, Callable[[float, int, Link], float]] = {
    "recursive doubling": recursive_doubling,
    "Rabenseifner": rabenseifner,
    "ring": ring,
}


def best(n: float, p: int, link: Link) -> tuple[float, str]:
    """The seconds of the quickest algorithm, which is what MPI libraries switch to by size, and its name."""
    return min((cost(n, p, link), name) for name, cost in ALGORITHMS.items())


def bound(n: float, p: int, link: Link) -> float:
    """No algorithm is quicker: lg p messages after one another, and 2 (p-1)/p n bytes through each link.

    Thakur et al., § 4.5; Patarasuk and Yuan, § 3.  Additions, nodes of several ranks and all else left out.
    """
    return max((p - 1).bit_length() * link.alpha, 2 * (p - 1) / p * n * link.beta)


def two_levels(n: float, nodes: int, local: int, network: Link, memory: Link, algorithm: str = "") -> float:
    """Ranks of a node sum through its memory, and one of them, or each a part, with the other nodes.

    So do MPICH and what is made of it at all sizes; each byte crosses a node's one network adapter once
    each way.  `memory` is what a rank gets of it while all ranks of the node copy.

    Args:
        algorithm: between nodes; the quickest by default.
    """
    between = ALGORITHMS[algorithm](n, nodes, network) if algorithm else best(n, nodes, network)[0]
    return rabenseifner(n, local, memory) + between
