"""Packages of others: twinview and the two of examples/ as wheels, in a clean environment, used from outside the repository.

The environment has its own site-packages; torch and what else twinview depends on is what this interpreter has, reached by a .pth file.
"""
from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("twinview-dino", "twinview-lab")


class Clean(NamedTuple):
    """An environment, and the wheels that were installed into it."""

    python: Path
    folder: Path  # outside the repository
    wheels: dict[str, Path]

    def run(self, *command: str, expect: int = 0) -> str:
        """What a command of this environment prints."""
        environment = {**os.environ, "TWINVIEW_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run([str(self.python), *command], capture_output=True, text=True, cwd=self.folder, env=environment, check=False, timeout=500)
        assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("elsewhere")
    wheels = {}
    for name, source in (("twinview", ROOT), *((name, ROOT / "examples" / name) for name in PACKAGES)):
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist" / name)]
        subprocess.run(command, cwd=source, check=True, capture_output=True)
        (wheels[name],) = (folder / "dist" / name).glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    python = folder / "env" / "bin" / "python"
    site = Path(subprocess.run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True, text=True).stdout.strip())
    for wheel in wheels.values():  # pure Python: a wheel is unpacked, which is what installing it does
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    (site / "the_rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Clean(python, folder, wheels)


def test_what_a_wheel_holds(clean: Clean) -> None:
    held = {name: zipfile.ZipFile(wheel).namelist() for name, wheel in clean.wheels.items()}
    assert {"twinview/py.typed", "twinview/recipes/multisiam/quickstart.toml", "twinview/scaffold/templates/loss.py.txt", "twinview_tiny/__init__.py"} <= set(held["twinview"])
    assert not [name for name in held["twinview"] if "test" in name.split("/")[0] or "shared" in name or "example" in name]
    assert "twinview_dino/recipes/quickstart.toml" in held["twinview-dino"] and "twinview_dino/py.typed" in held["twinview-dino"]
    assert clean.wheels["twinview"].stat().st_size < 2_000_000


def test_nothing_is_taken_from_the_repository(clean: Clean) -> None:
    said = clean.run("-c", "import twinview, twinview_dino, twinview_byol; print(twinview.__file__, twinview_dino.__file__, twinview_byol.__file__)")
    assert said.count(str(clean.folder)) == 3 and str(ROOT) not in said


def test_their_recipes_stand_beside_ours_and_nothing_is_imported(clean: Clean) -> None:
    said = clean.run("-m", "twinview", "recipes")
    assert "dino/quickstart" in said and "(twinview-dino 0.1.0)" in said and "lab/quickstart" in said and "multisiam/quickstart" in said
    command = "import sys, twinview.cli; twinview.cli.main(['recipes']); print('twinview_dino' in sys.modules, 'torch' in sys.modules)"
    assert clean.run("-c", command).splitlines()[-1] == "False False"


def test_they_check_and_train(clean: Clean) -> None:
    small = ["run.steps=2", "run.batch_size=4", "views.size=32", "run.precision=fp32", "evaluate=[]", "data.workers=0"]
    code = f"""
import sys
import twinview
from twinview.testing import small_shards
where = "data.shards=" + small_shards()
dino = twinview.train("dino/quickstart", where, "views.local_size=16", "views.local=2", "encoder.img_size=32", *{small!r}, run="runs/dino")
lab = twinview.train("lab/quickstart", where, *[word for word in {small!r} if not word.startswith("evaluate")], run="runs/lab")
print(dino.step, lab.step, sorted(lab.scores))
"""
    assert "2 2 ['alignment', 'uniformity']" in clean.run("-c", code)


@pytest.mark.parametrize("name", PACKAGES)
def test_their_own_tests_pass(clean: Clean, name: str) -> None:
    said = clean.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(clean.folder), str(ROOT / "examples" / name / "tests"))
    assert " passed" in said and "failed" not in said


def test_the_core_has_no_knowledge_of_them() -> None:
    for path in [*(ROOT / "core").rglob("*.py"), *(ROOT / "plugins").rglob("*.py"), ROOT / "pyproject.toml"]:
        assert "twinview_dino" not in path.read_text() and "twinview_lab" not in path.read_text(), path
