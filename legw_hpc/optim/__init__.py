"""Optimizers: LARS, the paper's seven solvers by name, and LEGW for other people's loops."""

from legw_hpc.optim.lars import LARS, trust_ratio
from legw_hpc.optim.lr_scheduler import LEGW
from legw_hpc.optim.solvers import SOLVERS, parameter_groups, solver

__all__ = ["LARS", "LEGW", "SOLVERS", "parameter_groups", "solver", "trust_ratio"]
