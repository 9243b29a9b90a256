"""The set-up, as far as it can be tried without building: what it refuses, and that the patch is exact."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_an_older_python_is_told_so(tmp_path: Path) -> None:
    code = "import runpy, sys; sys.version_info = (3, 9, 18); runpy.run_path('.setup/install.py', run_name='__main__')"
    environment = {"VENV": str(tmp_path / "v"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "3.10 or later" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "v").exists()


def test_another_release_of_horovod_is_refused_and_not_half_mended(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text("project(horovod CXX)\n")
    code = f"import sys; sys.path.insert(0, '.setup'); import wheels, pathlib; wheels.patch(pathlib.Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "BuildError: patching CMakeLists.txt: 0 places match" in done.stderr
    assert (tmp_path / "CMakeLists.txt").read_text() == "project(horovod CXX)\n"
