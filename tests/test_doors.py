"""The shape of the package: what may import what."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import legw_hpc

PACKAGE = Path(legw_hpc.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """At run time: not what is there for a type alone."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_horovod_and_mpi4py_only_in_comm(path: Path) -> None:
    engines = {name for name in imports(path) if name.split(".")[0] in ("horovod", "mpi4py")}
    assert not engines or path.parent.name == "comm"


@pytest.mark.parametrize("path", sorted((PACKAGE / "comm").glob("*.py")), ids=lambda path: path.name)
def test_nothing_of_another_rank_is_unpickled(path: Path) -> None:
    """As mpi4py's methods in lower case and Horovod's ..._object do."""
    assert re.findall(r"pickle\.|_object\(|(?:world|WORLD|node)\.[a-z]\w*\(", path.read_text()) == []


# Imports point downward only: each of these names nothing to its right.
LAYERS = [
    "cli", "doctor", "status", "plan", "submit", "paper", "curvature_run", "sweep", "local_runs", "figures", "places",
    "records", "grid", "peak", "single_run", "startup", "watchdog", "work", "agreement", "tuning", "twins", "curvature",
    "runfolder", "owner",
    "checkpoint", "trainer", "gradients", "precision", "apps", "models", "optim", "device", "data", "comm", "runlog", "launcher",
    "sizes", "derived", "recipe", "allowed", "strict", "installed", "steps", "schedule", "legw", "noise", "errors",
]  # fmt: skip


def test_imports_point_downward() -> None:
    wrong = []
    for path in FILES:
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part not in LAYERS:
            continue
        above = {f"legw_hpc.{name}" for name in LAYERS[: LAYERS.index(part)]}
        wrong += [(part, name) for name in imports(path) if ".".join(name.split(".")[:2]) in above]
    assert wrong == []


@pytest.mark.parametrize(
    "module",
    [
        "legw_hpc",
        "legw_hpc.legw",
        "legw_hpc.schedule",
        "legw_hpc.noise",
        "legw_hpc.recipe",
        "legw_hpc.cli",
        "legw_hpc.submit.send",
        "legw_hpc.plan.forecast",
        "legw_hpc.plan.text",
        "legw_hpc.status",
    ],
)
def test_the_rule_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_library_part_works_without_horovod_and_mpi() -> None:
    code = (
        "import sys; sys.modules['horovod'] = sys.modules['mpi4py'] = None\nfrom legw_hpc import *\nprint(LARS, LEGW, scale, run)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_training_does_not_import_the_compiler(tmp_path: Path) -> None:
    code = (
        "import sys; from legw_hpc import run; from legw_hpc.recipe import load\n"
        "for solver in ['momentum', 'adam', 'lars']:\n"
        f"    run(load('mnist-lstm-sample', ['max_steps=1', f'solver={{solver}}', f'out={tmp_path}/{{solver}}']))\n"
        "    if 'torch._dynamo' in sys.modules: sys.exit(solver)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["legw", "schedule"])
def test_examples_in_docstrings(name: str) -> None:
    import doctest
    import importlib

    found = doctest.testmod(importlib.import_module(f"legw_hpc.{name}"))
    assert found.attempted
    assert not found.failed
