"""README keeps its word: links, the example in Python, the output that it shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_plan_prints_what_is_shown(cli: Cli) -> None:
    shown = re.search(r"((?:    (?:recipe|batch|lr|warmup|decay|steps) .*\n)+)", README)
    assert shown
    assert cli("plan", "mnist-lstm", "batch=8192").stdout == re.sub(r"^    ", "", shown[1], flags=re.M)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "jobs/README.md",
        "legw_hpc/data/FORMAT.md",
        "results/baseline-mnist-lstm.md",
        "results/baseline-ptb-lstm.md",
        "results/imagenet-sample.md",
        "results/figures.md",
        "results/figure1.md",
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (ROOT / page).parent.joinpath(link).exists(), link


def test_the_map_names_what_is_there() -> None:
    section = README.split("## Map")[1].split("## ")[0]
    entries = [line[4:].split("  ")[0].split() for line in section.splitlines() if line.startswith("    ")]
    assert len(entries) > 10
    for first, *others in entries:
        for path in (first, *(str(Path(first).parent / other) for other in others)):
            assert (ROOT / path).exists(), path


def test_results_in_the_readme_are_those_of_the_logs() -> None:
    from legw_hpc import runlog

    table = {
        int(b.replace(",", "")): float(a)
        for b, a in re.findall(r"^\| ([\d,]+) \| \d+ \|.*\| ([\d.]+) \| (?:98\.8|no loss) \|$", README, re.M)
    }
    for batch, log in ((128, "b128-lr0.1"), (8192, "b8192-lr0.1")):
        lines = runlog.parse((ROOT / "results" / "mnist-lstm" / f"{log}.jsonl").read_text())
        assert lines[0]["recipe"]["batch"] == batch
        assert table[batch] == round(lines[-1]["metrics"]["accuracy"], 2)
