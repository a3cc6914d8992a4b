"""What tests of several rooms share: devices, seeds, threads, a folder with a small table, and which package runs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the workers share the cores; read when torch is imported
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault(
        "OMP_NUM_THREADS", str(max(1, cores // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))
    )

import torch

ROOT = Path(__file__).parents[1]
if not (ROOT / "stratcore/_C.abi3.so").is_file():
    # Bare sources, as a plain `pip install .` leaves them: the installed package must come before them, while the
    # tests and benches are still found here.
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != ROOT] + [str(ROOT)]

import stratcore  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def pytest_report_header() -> str:
    return f"stratcore {stratcore.__version__} in {stratcore.__path__[0]}"


@pytest.fixture(scope="session", autouse=True)
def outside_the_sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An interpreter that a test starts finds this same package, and after it the tests; its own folder is empty."""
    package = str(Path(stratcore.__path__[0]).parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("outside"))
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    without_gpu = pytest.mark.skip(reason="no CUDA GPU")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(without_gpu)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def single_thread() -> Iterator[None]:
    """For sizes at which a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def _refused_waits() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch does not detect every one of them
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def refused_waits() -> Callable[[], AbstractContextManager[None]]:
    """A context in which the host's waiting for the GPU is an error."""
    return _refused_waits


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder with the small table in it, as the current one."""
    from python_tests.recipes.small_run import save_small_table  # few tests need what it imports

    save_small_table(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(self: object, resume: object = None) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr("stratcore.training.Trainer.fit", fit)


@pytest.fixture
def quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench takes rooflines as given instead of measuring them."""
    from bench import harness

    monkeypatch.setattr(harness, "measure_ceilings", lambda *_: harness.Ceilings(1e9, 1e9))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
