"""What a command imports before it does its work: each library only where it is used.  The times themselves stand in docs/architecture.md."""
from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest

HEAVY = ("torch", "torch._dynamo", "deepspeed", "torchvision", "timm", "sklearn", "scipy", "numba", "webdataset", "fsspec")
METHODS = ("twinview_byol", "twinview_multisiam", "twinview_probes")
PRINT = "import sys, json; print(json.dumps(sorted(set(sys.modules) & set(sys.argv[1].split()))))"


def imported(code: str) -> list[str]:
    """Those of HEAVY that a new process has imported after `code`."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{PRINT}", " ".join([*HEAVY, *METHODS])], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"], ["recipes"]], ids=" ".join)
def test_commands_that_only_say_something_import_no_torch(words: list[str]) -> None:
    assert imported(f"from twinview.cli import main\ntry: main({words!r})\nexcept SystemExit: pass") == []


def test_to_check_a_recipe_imports_nothing_that_only_training_uses(toy: dict[str, Any]) -> None:
    """The encoder's own library is imported, since its widths are asked for; of a plugin's own encoder there is none."""
    table = {**toy, "augment": {"use": "byol.photometry"}, "align": {"use": "multisiam.roi"}, "data": {"shards": "none.tar"}}
    table["loss"] = [{"use": "multisiam.clusters", "hidden": 8, "channels": 8}, {"use": "byol.image", "hidden": 8, "channels": 8}]
    table["evaluate"] = [{"use": f"probes.{name}", "val": "none.tar"} for name in ("knn", "linear")]
    code = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\nfrom twinview.api import check\nfrom twinview.errors import TwinviewError"
    found = imported(f"{code}\ntry: check({table!r})\nexcept TwinviewError: pass  # there are no such shards; by then every part is made")
    assert {"twinview_byol", "twinview_multisiam", "twinview_probes"} <= set(found) <= {*METHODS, "torch", "fsspec"}, found


def test_the_package_itself_is_light() -> None:
    assert imported("import twinview, twinview.recipe, twinview.hooks, twinview.errors") == []


def test_a_run_imports_no_library_that_none_of_its_parts_uses(toy: dict[str, Any], photo_shards: str, tmp_path: Any) -> None:
    table = {**toy, "data": {"shards": photo_shards, "workers": 0}, "run": {"steps": 1, "batch_size": 2, "device": "cpu"}}
    code = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}; from twinview import api; api.train({table!r}, run={str(tmp_path / 'run')!r})"
    assert not {"timm", "sklearn", "numba"} & set(imported(code))


def test_torchvision_and_timm_come_without_torchs_compiler_which_is_there_when_asked_for() -> None:
    code = """
        import sys, torch
        from twinview.ops.vision import import_timm
        before = torch.compiler.disable
        assert import_timm() is sys.modules["timm"] and not any(name.startswith("torch._dynamo") for name in sys.modules)
        assert torch.compiler.disable is before
        from torchvision.ops import roi_align
        assert roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 4, 4]]), 2).shape == (1, 1, 2, 2)
        asked = roi_align.__globals__["is_compile_supported"]
        import torch._dynamo.utils
        assert asked("cpu") == torch._dynamo.utils.is_compile_supported("cpu")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
