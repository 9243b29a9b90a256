"""The runs of published.toml, what the performance model makes of them, and its parameters fitted to them."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from legw_hpc import strict
from legw_hpc.plan.allreduce import Link
from legw_hpc.plan.model import Speeds, Work, alpha_beta, step

DATA = Path(__file__).with_name("published.toml")

IMAGES = 1_281_167
# What two publications of the same thing differ by, and a model without free parts cannot be better than (assumed).
SPREAD = 0.1
# What is fitted besides a rate for each class of hardware: a first guess and the factor by which it may be wrong (assumed).
GUESSES = {"half_batch": (4.0, 3.0), "share": (0.5, 2.0), "jitter": (0.03, 3.0), "overlap": (0.5, 2.0)}
# Of a message within a node, s, and of copying, bytes/s (assumed): they matter little beside what is fitted.
ALPHA, COPY = 1e-6, 50e9


@dataclass(frozen=True)
class Network:
    """See the head of published.toml."""

    alpha_us: float
    gb_per_s: float
    source: str


@dataclass(frozen=True)
class Hardware:
    """A class of one compute rate, of a node or, where a rank is a GPU, of one; or `like` another one and `times` as fast."""

    network: str
    gpu: bool = False
    gradient_mb: float = 102.2
    node_gb_per_s: float = 10.0
    like: str = ""
    times: float = 1.0


@dataclass(frozen=True)
class Run:
    """See the head of published.toml."""

    hardware: str
    nodes: int
    batch: int
    source: str
    ranks: int = 1
    epochs: float = 0.0
    minutes: float = 0.0
    step_s: float = 0.0
    images_per_s: float = 0.0
    efficiency: float = 0.0
    base: str = ""
    scored: bool = True
    assumed: str = ""

    @property
    def seconds(self) -> float:
        """Published, of a step; 0 where an efficiency or nothing is."""
        if self.minutes:
            return 60 * self.minutes / (self.epochs * IMAGES / self.batch)
        return self.step_s or (self.batch / self.images_per_s if self.images_per_s else 0.0)

    @property
    def configuration(self) -> tuple[str, int, int, int]:
        """What two runs have in common that are held out together."""
        return self.hardware, self.nodes, self.ranks, self.batch

    @property
    def published(self) -> float:
        """Samples a second, or the efficiency; 0 where nothing is."""
        return self.batch / self.seconds if self.seconds else self.efficiency


@dataclass(frozen=True)
class Published:
    """The file."""

    networks: dict[str, Network]
    hardware: dict[str, Hardware]
    runs: dict[str, Run]

    @classmethod
    def read(cls) -> Published:
        tables = strict.read(DATA)

        def each(key: str, kind: type[Any]) -> dict[str, Any]:
            return {name: strict.build(kind, table, f"{DATA.name}: {key}.{name}") for name, table in tables[key].items()}

        return cls(each("networks", Network), each("hardware", Hardware), each("runs", Run))

    def kind(self, run: Run) -> str:
        """The hardware whose rate decides."""
        return self.hardware[run.hardware].like or run.hardware


Parameters = dict[str, float]


class Model:
    """Steps of published runs, by fitted parameters.

    Args:
        data: networks and hardware.
        full: the whole model; else the pure alpha-beta bound, of which the rates alone are fitted.
    """

    def __init__(self, data: Published, full: bool):
        self.data, self.full = data, full
        self._known: dict[tuple[Run, tuple[float, ...]], float] = {}

    def names(self) -> list[str]:
        rates = [f"rate {name}" for name, hardware in self.data.hardware.items() if not hardware.like]
        return [*rates, *(GUESSES if self.full else ())]

    def seconds(self, run: Run, values: Parameters) -> float:
        """Of a step.  Kept: a fit changes one parameter at a time, and most rates are other hardware's."""
        needed = run, tuple(values.get(name, 0.0) for name in (f"rate {self.data.kind(run)}", *GUESSES))
        if needed not in self._known:
            self._known[needed] = self._seconds(run, values)
        return self._known[needed]

    def _seconds(self, run: Run, values: Parameters) -> float:
        hardware = self.data.hardware[run.hardware]
        network = self.data.networks[hardware.network]
        rate = values[f"rate {self.data.kind(run)}"] * hardware.times
        share = min(1.0, values["share"]) if self.full else 1.0
        node = 1e-9 / hardware.node_gb_per_s
        speeds = Speeds(
            samples_per_s=rate if hardware.gpu else rate / run.ranks,
            half_batch=values.get("half_batch", 0.0), jitter=values.get("jitter", 0.0),
            network=Link(1e-6 * network.alpha_us, 1e-9 / (share * network.gb_per_s), node),
            memory=Link(ALPHA, node, node), cycle=0.0, memory_per_s=COPY, input_per_s=math.inf,
        )  # fmt: skip
        local = -(-run.batch // (run.nodes * run.ranks))
        overlap = min(1.0, values.get("overlap", 0.0))
        work = Work(run.batch, micro_batch=local, gradient=1e6 * hardware.gradient_mb, overlap=overlap)
        return step(work, run.nodes, run.ranks, speeds).step if self.full else alpha_beta(work, run.nodes, run.ranks, speeds)

    def predicted(self, run: Run, values: Parameters) -> float:
        """What `Run.published` is of."""
        rate = run.batch / self.seconds(run, values)
        if not run.efficiency:
            return rate
        base = self.data.runs[run.base]
        return rate / run.nodes / (base.batch / self.seconds(base, values) / base.nodes)


@dataclass(frozen=True)
class Fit:
    """What the runs say of the parameters.

    Attributes:
        values: by name.
        factors: by which each may be off, one standard deviation.
    """

    values: Parameters
    factors: Parameters


def fit(model: Model, runs: Collection[Run], start: Parameters | None = None) -> Fit:
    """The parameters that make the logarithms of predicted and published differ least, guesses included.

    Least squares by Levenberg and Marquardt, in logarithms.

    Args:
        runs: those without a published figure take no part.
        start: a fit of more runs, to be quicker.
    """
    names = model.names()
    # A rate without a guess: anything within many orders of magnitude is as likely.
    guesses, factors = np.log([GUESSES.get(name, (100.0, math.exp(10))) for name in names]).T
    taken = [run for run in runs if run.published]

    def off(x: Any) -> Any:
        values = dict(zip(names, np.exp(x).tolist(), strict=True))
        from_runs = [math.log(model.predicted(run, values) / run.published) / SPREAD for run in taken]
        return np.array([*from_runs, *((x - guesses) / factors)])

    def slopes(x: Any, now: Any) -> Any:
        return np.array([(off(x + h) - now) / 1e-5 for h in 1e-5 * np.eye(len(x))]).T

    x = np.log([start[name] for name in names]) if start else guesses
    now, damping = off(x), 1e-3
    jacobian = slopes(x, now)
    while damping < 1e4:
        normal = jacobian.T @ jacobian
        there = x - np.linalg.solve(normal + damping * np.eye(len(x)), jacobian.T @ now)
        then = off(there)
        gain = now @ now - then @ then
        if gain > 0:
            x, now, damping = there, then, damping / 10
            jacobian = slopes(x, now)
        else:
            damping *= 10
        if 0 <= gain < 1e-4:
            break
    spread = np.exp(np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian))))
    return Fit(dict(zip(names, np.exp(x).tolist(), strict=True)), dict(zip(names, spread.tolist(), strict=True)))
