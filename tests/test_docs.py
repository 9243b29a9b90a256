"""The pages of docs/ keep their word: what they tell to do is done here, as it stands there."""

from __future__ import annotations

import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from legw_hpc import runlog
from legw_hpc.allowed import PRECISIONS
from legw_hpc.apps import APPLICATIONS
from legw_hpc.cli import parse
from legw_hpc.optim.solvers import SOLVERS
from legw_hpc.recipe import DEFAULTS, Recipe
from legw_hpc.schedule import DECAYS
from tests.conftest import Cli
from tests.parallel.ranks import launch, needs_mpi

ROOT = Path(__file__).parents[1]
OWN_MODEL = (ROOT / "docs/your-own-model.md").read_text()


def block(page: str, opening: str) -> str:
    """The code block that begins with these words."""
    found = [text for text in re.findall(r"```\w+\n(.*?)```", page, re.S) if text.startswith(opening)]
    assert len(found) == 1, opening
    return found[0]


@pytest.fixture(scope="module")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page in a folder, installed into `site` there; as a user's `pip install` does into an environment."""
    folder = tmp_path_factory.mktemp("own")
    for name, opening in {"spirals.py": '"""Two', "pyproject.toml": "[project]", "spirals.toml": "application"}.items():
        (folder / name).write_text(block(OWN_MODEL, opening))
    (install,) = re.findall(r"^pip (install .*) \.$", OWN_MODEL, re.M)
    pip = [sys.executable, "-m", "pip", *install.split(), "--quiet", "--target", "site", "."]
    done = subprocess.run(pip, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    subprocess.run([sys.executable, "spirals.py", "data/spirals"], cwd=folder, check=True, timeout=60)
    return folder


def legw_hpc(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{folder / 'site'}:{ROOT}"}
    command = [sys.executable, "-m", "legw_hpc", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_an_application_of_ones_own_is_short() -> None:
    assert len(block(OWN_MODEL, '"""Two').splitlines()) <= 60


def test_an_application_of_ones_own_trains(own_model: Path) -> None:
    planned = legw_hpc(own_model, "plan", "spirals.toml", "batch=512")
    assert "k = 16" in planned.stdout, planned.stderr
    trained = legw_hpc(own_model, "train", "spirals.toml", "out=runs/first", "threads=1")
    assert trained.returncode == 0, trained.stderr
    assert runlog.read(own_model / "runs/first")[-1]["metrics"]["accuracy"] > 99
    start = runlog.read(own_model / "runs/first")[0]
    assert re.fullmatch(r"spirals 0\.1, sources [0-9a-f]{12}", start["package"])
    told = legw_hpc(own_model, "train", "spirals.toml", "options.width=3")
    assert (told.returncode, "no option 'width': it takes hidden" in told.stderr) == (2, True)


def test_the_weights_are_had_again(own_model: Path) -> None:
    if not (own_model / "runs/first").exists():
        assert legw_hpc(own_model, "train", "spirals.toml", "out=runs/first", "threads=1").returncode == 0
    program = f"import torch, spirals\nmodel = spirals.spirals().model()\n{block(OWN_MODEL, 'state = ')}"
    environment = os.environ | {"PYTHONPATH": f"{own_model / 'site'}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=own_model, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@needs_mpi
def test_an_application_of_ones_own_on_2_ranks(own_model: Path) -> None:
    pytest.importorskip("horovod")
    words = ["env", f"PYTHONPATH={own_model / 'site'}:{ROOT}", sys.executable, "-m", "legw_hpc", "train", "spirals.toml"]
    code, said = launch(2, [*words, "batch=512", "max_steps=3", "out=two"], cwd=own_model)
    assert code == 0, said
    assert runlog.read(own_model / "two")[0]["ranks"] == 2


def test_an_application_that_is_not_installed_is_refused(cli: Cli, own_model: Path) -> None:
    said = cli("plan", own_model / "spirals.toml")
    assert said.returncode == 2
    assert "unknown application 'spirals': one of mnist-lstm" in said.stderr


PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("http"):
            path, _, heading = target.partition("#")
            file = (ROOT / "docs" / path).resolve()
            assert file.exists(), target
            if heading:
                headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
                assert heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings], target


SPOKEN = re.findall(r"^\|[^|]*?`([^`|]+)`[^|]*\|", (ROOT / "docs/troubleshooting.md").read_text(), re.M)


@pytest.mark.parametrize("message", SPOKEN)
def test_messages_are_what_the_code_says(message: str) -> None:
    """What is between its blanks ("...", numbers, brackets, hosts) stands in one file, close together, in this order."""
    parts = [re.escape(part.strip()) for part in re.split(r"\.\.\.|\d+|\([^)]*\)|n12", message) if len(part.strip()) > 2]
    assert parts
    spoken = re.compile(".{0,200}?".join(parts), re.S)
    assert any(spoken.search(path.read_text()) for path in (ROOT / "legw_hpc").rglob("*.py")), spoken.pattern


TEXTS = {page: (ROOT / "docs" / page).read_text() for page in PAGES}
LINES = {
    (page, line) for page, text in TEXTS.items() for line in re.findall(r"^(?:    )?(?:mpirun .*)?(legw-hpc .*)$", text, re.M)
}
PROGRAMS = {(page, name) for page, text in TEXTS.items() for name in re.findall(r"python -m (benchmarks[.\w]*)", text)}


@pytest.mark.parametrize(("page", "line"), sorted(LINES))
def test_commands_are_understood(page: str, line: str) -> None:
    words = shlex.split(line.partition("#")[0].partition("legw-hpc ")[2])
    assert parse(words).command == words[0]


@pytest.mark.parametrize(("page", "program"), sorted(PROGRAMS))
def test_programs_are_there(page: str, program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    for name in (program, f"{program}.__main__"):
        monkeypatch.delitem(sys.modules, name, raising=False)  # as a process of its own has it
    with pytest.raises(SystemExit) as end:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    assert not end.value.code
    assert "usage: " in capsys.readouterr().out


RECIPE_PAGE = TEXTS["recipe.md"]


def every_key(kind: type = Recipe, prefix: str = "") -> set[str]:
    """Of a recipe, flat and dotted, without the open tables."""
    found: set[str] = set()
    for name, hint in get_type_hints(kind).items():
        found |= every_key(hint, f"{prefix}{name}.") if is_dataclass(hint) else {prefix + name}
    return found - {"options", "solvers", "decays"}


def test_every_key_of_a_recipe_is_on_its_page_with_its_default() -> None:
    told = dict(re.findall(r"^\| `([\w.]+\w)` \| ([^|]*?) ?\|", RECIPE_PAGE, re.M))
    assert set(told) == every_key()
    in_words = {"batch": "the baseline's", "lr": "derived", "warmup_epochs": "derived", "growth.epochs": "none", "start": "none"}
    in_words |= dict.fromkeys(set(told) - set(DEFAULTS), "") | {"name": "the file's"}
    literal = {key: f"`{str(value).lower() if isinstance(value, bool) else value}`" for key, value in DEFAULTS.items()}
    assert told == literal | in_words


NAMES = {
    "options.": {option for make in APPLICATIONS.values() for option in inspect.signature(make).parameters} - {"window"},
    "application": set(APPLICATIONS), "solver": set(SOLVERS), "decay": set(DECAYS), "precision": set(PRECISIONS),
    **{f"decays.{name}.": {f.name for f in fields(decay)} for name, decay in DECAYS.items() if fields(decay)},
}  # fmt: skip


@pytest.mark.parametrize("key", NAMES)
def test_every_name_that_a_key_takes_is_on_its_page(key: str) -> None:
    row = next(line for line in RECIPE_PAGE.splitlines() if line.startswith(f"| `{key}`"))
    assert NAMES[key] <= set(re.findall(r"`([\w-]+)`", row))
