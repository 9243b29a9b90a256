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
    shown = re.search(r"((?:    (?:recipe|batch|lr|warmup|decay|steps|distance) .*\n)+)", README)
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
        "results/baseline-cifar10-resnet20.md",
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


def test_results_in_the_readme_are_those_of_the_figures() -> None:
    """Whose pages a test holds to the kept logs."""
    rows = re.findall(r"^\| ([\d,]+) \| \d+ \| [\d.]+ \| [\d.]+ \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", README, re.M)
    assert len(rows) >= 4
    for batch, legw, linear, adam in rows:
        for page, other in (("figure1", linear), ("figure5", adam)):
            mnist = (ROOT / "results" / f"{page}.md").read_text().split("## mnist")[1].split("## ptb")[0]
            assert f"| {batch} | {legw} | {other} |" in mnist
