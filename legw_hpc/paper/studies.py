"""Which runs a figure is made of.  Data: a grid a series, as `legw-hpc sweep` takes it.

Not in the paper, and assumed here: Adam has its own default rate of 0.001 at every batch, and the
recipe's decay; the grids of learning rates (its ranges, in our losses' units, and as far again where
its best end is not ours); what becomes of PTB's decay in 50 epochs (stretched: it then has the shape
that it has in 13); what the learning rate does while L(x, g) is measured (LEGW; LEGW without its warmup, which could
otherwise be what makes the peak; and one rate for all batches).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from legw_hpc.grid import Cell, cells

# Application -> recipe; the sample is what --quick trains.
RECIPES = {
    "mnist": "mnist-lstm",
    "ptb": "ptb-lstm",
    "ptb-paper": "ptb-lstm-paper",
    "cifar": "cifar10-resnet20",
    "cifar-hoffer": "cifar10-hoffer-2017",
    "small": "mnist-lstm-sample",
    "small-nesterov": "mnist-lstm-sample",
    "imagenet": "imagenet-resnet50",
    "sample": "mnist-lstm-sample",
}
QUICK = "sample"


@dataclass(frozen=True)
class Study:
    """A figure on one application.

    Attributes:
        series: words of a grid, by the label of its line.
        paper: what the paper gives: words, and a number to draw.
        along: what the runs of a series differ in: "batch" or "lr".
        distance: whether LEGW is also set beside its baseline at an equal sum of learning rates.
        named: trained where its application is named alone: no single machine trains it in days.
    """

    series: Mapping[str, str]
    paper: tuple[str, float] | None = None
    along: str = "batch"
    distance: bool = False
    named: bool = False

    def grid(self, application: str, seeds: int = 1) -> dict[str, list[Cell]]:
        """The cells of each series, the first seeds of each."""
        return {label: cells(RECIPES[application], [*words.split(), f"seeds={seeds}"]) for label, words in self.series.items()}


@dataclass(frozen=True)
class Figure:
    """A figure, Table 1, or a page of our own of the same kind.

    Attributes:
        title: of its page.
        kind: how its studies are shown: "quality" or "curvature".
        studies: by application.
    """

    title: str
    studies: Mapping[str, Study] = field(default_factory=dict)
    kind: str = "quality"


MNIST_BATCHES = "batch=128,256,512,1024,2048,4096,8192"
# Half of the time on a processor with bf16 arithmetic, and within 0.1 points, three seeds (results/baseline-mnist-lstm.md).
BF16 = "precision=bf16"
MNIST = f"{BF16} {MNIST_BATCHES}"
PTB = "batch=20,40,80,160,320,640"
SAMPLE = "batch=32,128,512 epochs=3 fixed_warmup_epochs=1"
TABLE_1 = "batch=1024,2048,4096,8192,16384,32768"

AT_128 = ("paper, batch 128", 98.8)  # § 5.1.1
AT_20 = ("paper, batch 20", 115.91)  # § 5.1.2

ADAM = "solver=adam baseline.lr=0.001 scheme=none"
LINEAR = "linear, fixed warmup"


def _scaled(batches: str) -> dict[str, str]:
    return {"LEGW": f"scheme=legw {batches}", LINEAR: f"scheme=linear {batches}"}


def _adam(batches: str) -> dict[str, str]:
    return {"LEGW": f"scheme=legw {batches}", "Adam": f"{ADAM} {batches}"}


def _momentum(batches: str) -> dict[str, str]:
    return {
        "Adam": f"{ADAM} {batches}",
        "same lr": f"scheme=none {batches}",
        "linear": f"scheme=linear+none {batches}",
        "linear, poly": f"scheme=linear+none decay=poly {batches}",
        "linear, poly, warmup": f"scheme=linear decay=poly {batches}",
    }


def _tuned(batch: str, rates: str, more: str = "") -> dict[str, str]:
    return {"LEGW": f"scheme=legw {batch} {more}", "tuned, no warmup": f"scheme=none {batch} lr={rates} {more}"}


def _curvature(words: str) -> dict[str, str]:
    return {scheme: f"{words} curvature_every=1 scheme={scheme}" for scheme in ("legw", "sqrt", "none")}


# The paper's 0.01 to 0.16 at batch 8,192, and as far again and half of it.
MNIST_RATES = "0.01,0.02,0.04,0.08,0.16,0.32,0.64,1.28"
# The paper's 0.1 to 1.6 at batch 640, of a loss that is summed over the 20 words of a window.
PTB_RATES = "2,4,8,16,32"
# PTB's decay with the shape that it has in 13 epochs: hold_epochs * 50 / 13, factor ** (13 / 50).
STRETCHED = "epochs=50 decays.exponential.factor=0.83509 decays.exponential.hold_epochs="

# What is at the heart of other papers, at the largest batch, with the baseline's values and what the rule makes of them; nothing
# is tuned there.  A batch that grows is at 8,192 from epoch 18 of 25 on: the doublings are assumed.  Akiba's epochs are 25/90 of
# theirs.
AT_8192 = "eval_every=5 batch=8192"
GROWS = "eval_every=5 scheme=none growth.epochs=[3,6,9,12,15,18]"
OTHERS = {
    "LEGW": AT_8192,
    "linear, 5 epochs of warmup from the baseline's rate (Goyal 2017)": f"scheme=linear+from-baseline {AT_8192}",
    "square root, no warmup (Hoffer 2017, but no longer training)": f"scheme=sqrt {AT_8192}",
    "LEGW, then up and down (Smith 2015)": f"decay=cyclic {AT_8192}",
    "LEGW with Nesterov momentum": f"solver=nesterov {AT_8192}",
    "a batch that grows from 128, one rate (Smith 2018)": GROWS,
    "it grows, and the rate falls to 0.75 each time (AdaBatch, Devarakonda 2017)": (
        f"{GROWS} decay=multi-step decays.multi-step.milestones=[3,6,9,12,15,18] decays.multi-step.factor=0.75"
    ),
    "RMSprop that turns into SGD, half the linear rate, their decay (Akiba 2017)": (
        f"{AT_8192} scheme=linear+none baseline.lr=0.05 solver=rmsprop-warmup solvers.rmsprop-warmup.center=2.8 "
        "solvers.rmsprop-warmup.period=1.4 decay=multi-step decays.multi-step.milestones=[11.1,19.4,23.6] "
        "decays.multi-step.factors=[0.15,0.02,0.002]"
    ),
}
# Their schedule in 5 epochs of their 200: the rate falls after the same shares.  What batch norm is over is all that differs.
SHORT = "batch=2048 epochs=5 decays.multi-step.milestones=[2.0,3.0,4.0]"
GHOSTS = {
    "ghost batch norm, over 128 images (Hoffer 2017)": f"{SHORT} micro_batch=128",
    "batch norm over all 2,048": f"{SHORT} micro_batch=2048",
}

# All of them on 5,000 images, 12 epochs, at 16 times the baseline's batch; what is of another length is scaled to that.  LARS has
# a rate of its own, the best of 0.5, 1, 2, 4 and 8 at batch 32.
AT_512 = "eval_every=3 batch=512"
LARS = f"solver=lars decay=poly baseline.lr=2.0 {AT_512}"
DOUBLES = "eval_every=3 scheme=none growth.epochs=[2,4,6,8]"
SMALL = {
    "LEGW": AT_512,
    "linear, 1 epoch of warmup from the baseline's rate (Goyal 2017)": (
        f"scheme=linear+from-baseline fixed_warmup_epochs=1 {AT_512}"
    ),
    "square root, no warmup (Hoffer 2017)": f"scheme=sqrt {AT_512}",
    "the same for as many steps as batch 32 takes (Hoffer 2017)": "scheme=sqrt batch=512 epochs=192 eval_every=48",
    "LEGW with LARS (You 2017)": LARS,
    "LEGW with LARS as NUS has it": f"{LARS} solvers.lars.variant=nus",
    "LEGW with LARS, decay from the warmup's end (MLPerf)": f"{LARS} decays.poly.origin=warmup",
    "LEGW, then up and down (Smith 2015)": f"decay=cyclic {AT_512}",
    "a batch that grows from 32, one rate (Smith 2018)": DOUBLES,
    "it grows, and the rate falls to 0.75 each time (AdaBatch, Devarakonda 2017)": (
        f"{DOUBLES} decay=multi-step decays.multi-step.milestones=[2,4,6,8] decays.multi-step.factor=0.75"
    ),
    "RMSprop that turns into SGD, half the linear rate, their decay (Akiba 2017)": (
        f"{AT_512} scheme=linear+none baseline.lr=0.025 solver=rmsprop-warmup solvers.rmsprop-warmup.center=1.33 "
        "solvers.rmsprop-warmup.period=0.67 decay=multi-step decays.multi-step.milestones=[5.33,9.33,11.33] "
        "decays.multi-step.factors=[0.15,0.02,0.002]"
    ),
    "Adam": f"{ADAM} {AT_512}",
}
# Tuned at the large batch, as Nado et al. 2021 do, if over little; with LEGW's warmup.
NESTEROV = {
    f"Nesterov, momentum {momentum}": f"solver=nesterov solvers.nesterov.momentum={momentum} {AT_512} lr=0.1,0.2,0.4,0.8"
    for momentum in (0.9, 0.95)
}

FIGURES = {
    "figure1": Figure(
        "Figure 1: final quality against batch size, LEGW beside linear scaling with 5 epochs of warmup",
        {
            "mnist": Study(_scaled(MNIST), AT_128, distance=True),
            "ptb": Study(_scaled(PTB), AT_20, distance=True),
            "ptb-paper": Study(_scaled(PTB), AT_20, distance=True),
            "imagenet": Study(_scaled(TABLE_1), named=True),
            "sample": Study(_scaled(SAMPLE)),
        },
    ),
    "figure2": Figure("Figure 2: learning rate against epoch for the batches of Table 1"),
    "figure3": Figure(
        "Figure 3: L(x, g), the local Lipschitz constant along the gradient, and where its peak lies",
        {
            "mnist": Study(_curvature(f"max_steps=150 {MNIST_BATCHES}")),
            "ptb": Study(_curvature(f"epochs=2 {PTB}")),
            "sample": Study(_curvature("epochs=4 batch=64,128,256")),
        },
        kind="curvature",
    ),
    "figure4": Figure(
        "Figure 4: Adam beside four ways to scale momentum",
        {"mnist": Study(_momentum(MNIST)), "sample": Study(_momentum("batch=32,512 epochs=2 fixed_warmup_epochs=1"))},
    ),
    "figure5": Figure(
        "Figure 5: Adam beside LEGW",
        {
            "mnist": Study(_adam(MNIST), AT_128),
            "ptb": Study(_adam(PTB), AT_20),
            "ptb-paper": Study(_adam(PTB), AT_20),
            "sample": Study(_adam(SAMPLE)),
        },
    ),
    "figure6": Figure(
        "Figure 6: comprehensive tuning at the largest batch beside LEGW's derived learning rate",
        {
            "mnist": Study(_tuned(AT_8192, MNIST_RATES), along="lr"),
            "ptb": Study(_tuned("batch=640", PTB_RATES), along="lr"),
            "ptb-paper": Study(_tuned("batch=640", PTB_RATES), along="lr"),
            "sample": Study(_tuned("batch=512", "0.05,0.1,0.2,0.4", "epochs=3"), along="lr"),
        },
    ),
    "figure7": Figure(
        "Figure 7: the same, trained until converged: MNIST for 100 epochs, PTB for 50",
        {
            "mnist": Study(_tuned(AT_8192, MNIST_RATES, "epochs=100"), along="lr"),
            "ptb": Study(_tuned("batch=640", PTB_RATES, f"{STRETCHED}15.3846"), along="lr"),
            "ptb-paper": Study(_tuned("batch=640", PTB_RATES, f"{STRETCHED}26.9231"), along="lr"),
            "sample": Study(_tuned("batch=512", "0.1,0.2,0.4", "epochs=6"), along="lr"),
        },
    ),
    "table1": Figure(
        "Table 1: LEGW and LARS on a CNN, batches of 1 to 32 times the baseline's",
        {
            "imagenet": Study({"LEGW": f"scheme=legw {TABLE_1}"}, named=True),
            "cifar": Study({"LEGW": f"{BF16} eval_every=2 batch=128,256,512,1024,2048,4096"}),
            "sample": Study({"LEGW": f"solver=lars decay=poly baseline.lr=4.0 {SAMPLE}"}),
        },
    ),
    "others": Figure(
        "Others: what other papers do for a large batch, on the LSTM beside LEGW, and on a small CNN",
        {
            "mnist": Study(OTHERS, AT_128),
            "cifar-hoffer": Study(GHOSTS),
            "small": Study(SMALL),
            "small-nesterov": Study(NESTEROV, along="lr"),
        },
    ),
}
