"""What tests of every part of twinview use."""
from __future__ import annotations

import contextlib
import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Processes
from toy import TOY

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: sums do not depend on the machine's cores

Install = Callable[..., None]

# Every test has one of the marks unit, ranks, slow and gpu: its own, or the one that the beginning of its file's place has here.  What is on no list
# is a unit test.
RANKS = (  # files whose tests start several processes, or are killed
    *("engine/distributed/", "engine/test_agreement", "engine/test_hook_state", "engine/test_recompute_ranks", "engine/test_run_lock", "engine/test_zero"),
    "data/loading/test_interrupt",
)
SLOW = (  # files whose tests train, start programs, or draw thousands of samples
    *(f"engine/test_{name}" for name in ("channels", "checkpoint", "compiled", "faults_of_runs", "mixed_run", "once", "real", "run_folder", "run_places")),
    *(f"engine/test_{name}" for name in ("skipped_steps", "train", "watching")),
    *("analysis/", "cli/", "benchmarks/", "engine/test_plan", "engine/test_moments", "data/test_bad_data", "data/test_fuzz", "data/test_equivalence"),
    *("data/dataset/test_mixture", "data/dataset/test_statistics", "data/dataset/test_stream", "data/loading/test_loader", "data/loading/test_waiting"),
    *("data/prepare/", "data/remote/", "data/scenes/", "data/store/test_image_folder", "data/store/test_regular", "data/writing/"),
    *("assembly/test_contract", "test_conformance", "test_docs", "test_hook_examples", "test_hook_promises", "test_hooks", "test_mixing", "test_start"),
    *("testing/", "test_examples", "test_scaffold", "test_site", "test_trust", "data/dataset/test_order", "data/test_rng", "engine/test_order_of_runs"),
    *(f"plugins/test_{name}" for name in ("byol_deep", "deepcluster", "densesiam_step", "encoder_channels", "iic")),
    *(f"plugins/test_{name}" for name in ("mae", "multisiam_clusters", "picie", "pixpro", "probes_classes", "probes_cluster", "probes_segment")),
    *(f"plugins/test_{name}" for name in ("siameseim_mix", "siameseim_parity", "simsiam_image", "timm_", "torchvision_", "finetune", "detection")),
    *(f"plugins/test_{name}" for name in ("supervised", "probes_online", "probes_references", "byol_photometry", "multisiam_views")),
)


MARKS = ("gpu", "ranks", "slow", "unit")  # every test has one of them; files are given out in this order, by the first that they hold


def pytest_configure(config: pytest.Config) -> None:
    """Give files to pytest-xdist's processes in the order of `pytest_collection_modifyitems`, not by their number of tests: few tests may take long."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that has no mark of its own; then long files first, so that two processes end together."""
    mark(items)
    first: dict[Path, int] = {}
    for item in items:
        level = next((n for n, name in enumerate(MARKS) if item.get_closest_marker(name)), len(MARKS))
        first[item.path] = min(level, first.get(item.path, level))
    items.sort(key=lambda item: first[item.path])


def mark(items: list[pytest.Item]) -> None:
    """Mark every test that has no mark of its own."""
    for item in items:
        if any(item.get_closest_marker(name) for name in MARKS):
            continue
        if Path(__file__).parent not in item.path.parents:  # of examples/
            continue
        place = str(item.path.relative_to(Path(__file__).parent).with_suffix(""))
        ranks = place.startswith(RANKS) or {"processes", "two_ranks"} & set(getattr(item, "fixturenames", ()))
        item.add_marker("ranks" if ranks else "slow" if place.startswith(SLOW) or place.endswith("_reference") else "unit")


def write_method(folder: Path, method: str, code: str, dist: str | None = None) -> None:
    """What pip would leave of a third-party method in a folder on the path: a module and its metadata."""
    dist = dist or f"twinview_{method}"
    info = folder / f"{dist}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (folder / f"{dist}.py").write_text(textwrap.dedent(code))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[twinview]\n{method} = {dist}\n")


@contextlib.contextmanager
def installing(folder: Path) -> Iterator[Install]:
    """Installs third-party methods into a folder, which is on the path until the end."""
    made: list[str] = []

    def _install(method: str, code: str = "", dist: str | None = None) -> None:
        write_method(folder, method, code or TOY, dist)
        made.append(dist or f"twinview_{method}")
        importlib.invalidate_caches()

    with pytest.MonkeyPatch.context() as patch:
        folder.mkdir(exist_ok=True)
        patch.syspath_prepend(str(folder))
        yield _install
    for name in made:
        sys.modules.pop(name, None)


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Install]:
    """Install a third-party method as pip would: `install(name, code)`."""
    with installing(tmp_path / "site") as found:
        yield found


@pytest.fixture(scope="module")
def install_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Install]:
    """`install`, until the module's last test; without code it installs the toy method."""
    with installing(tmp_path_factory.mktemp("site")) as found:
        yield found


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve small photographs, {name}.jpg, smooth and each of its own colors."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("photographs")
    for i in range(12):
        rng = np.random.default_rng(i)
        image = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((80, 56), Image.Resampling.BICUBIC)
        image.save(folder / f"photo{i:02}.jpg", quality=92)
    return folder


@pytest.fixture(scope="session")
def photo_shards(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The photographs as shards."""
    from twinview.data.prepare.pack import pack_images

    return str(pack_images(photographs, tmp_path_factory.mktemp("packed") / "photographs").out)


@pytest.fixture
def toy(install: Install) -> dict[str, Any]:
    """A small method, installed, and a recipe of its parts alone."""
    install("toy")
    return {
        "views": {"use": "toy.views"},
        "encoder": {"use": "toy.encoder"},
        "loss": [{"use": "toy.pooled"}],
        "data": {"shards": "none.tar", "workers": 0},
        "optimizer": {"use": "sgd", "lr": 0.1},
        "run": {"steps": 4, "batch_size": 4, "precision": "fp32", "log_every": 1},
    }


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    """What tests do in other processes: tests/processes.py."""
    global _PROCESSES
    found = _PROCESSES or Processes()
    _PROCESSES = None
    yield found
    found.close()


_PROCESSES: Processes | None = None  # started while the first tests run, which do not need it


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the server of processes early, where a test will need it."""
    global _PROCESSES
    if not session.config.option.collectonly and any({"processes", "two_ranks"} & set(getattr(item, "fixturenames", ())) for item in getattr(session, "items", ())):
        _PROCESSES = Processes()


def pytest_unconfigure() -> None:
    """A server that no test has asked for after all ends with the session."""
    if _PROCESSES is not None:
        _PROCESSES.close()


@pytest.fixture
def two_ranks(processes: Processes) -> Callable[[Callable[[int], Any]], list[Any]]:
    """`two_ranks(function)`: what `function(rank)`, at the top of a test file, gives on each of two gloo ranks."""
    return processes.ranks


@pytest.fixture
def shared() -> Path:
    """The folder of real images and reference tensors beside the checkout; tests that need it skip without."""
    found = Path(__file__).resolve().parents[1].parent / "shared"
    if not found.is_dir():
        pytest.skip("needs the shared folder beside the checkout")
    return found
