from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import stratcore
from stratcore import info


def run_python(*arguments: str) -> str:
    finished = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def rows(report: str, title: str) -> dict[str, str]:
    block = next(b for b in report.split("\n\n") if b.startswith(f"{title}\n"))
    return dict(line.split(None, 1) for line in block.splitlines()[1:])


def test_command_prints_an_aligned_report():
    report = run_python("-m", "stratcore.info")
    titles = ["stratcore", "libraries", "devices", "kernels", "packages"]
    assert [block.splitlines()[0] for block in report.split("\n\n")] == titles
    lines = [line for line in report.splitlines() if line.startswith("  ")]
    columns = {len(line) - len(line.split(None, 1)[1]) for line in lines if len(line.split(None, 1)) == 2}
    assert len(columns) == 1
    assert rows(report, "stratcore")["version"] == stratcore.__version__
    assert rows(report, "packages")["torch"] == torch.__version__
    libraries = rows(report, "libraries")
    assert libraries["libstratcore"].startswith("yes: ") and libraries["_C"] == libraries["_array"] == "yes"
    assert rows(report, "kernels")["topk_lista"].startswith("cpu yes, array yes, cuda ")


def test_works_where_torch_is_not_installed():
    code = "import sys; sys.modules['torch'] = None; from stratcore import info; info.main()"
    report = run_python("-c", code)
    assert rows(report, "libraries")["_C"].startswith("no: ")
    assert rows(report, "libraries")["_array"] == "yes"
    kernels = rows(report, "kernels")["topk_lista"]
    assert kernels.startswith("cpu no: ") and ", array yes, cuda no: " in kernels


def test_every_built_op_has_a_probe():
    assert set(info.build_description()["ops"].split()) == set(info.PROBES)


def test_build_description_names_compiler_and_cuda():
    description = info.build_description()
    assert set(description) == {"compiler", "cuda", "architectures", "ops"}
    assert (description["cuda"] == "no") == (description["architectures"] == "")


def fake_torch(cuda: str | None, hip: str | None = None, available: bool = False) -> SimpleNamespace:
    version = SimpleNamespace(cuda=cuda, hip=hip)
    return SimpleNamespace(version=version, cuda=SimpleNamespace(is_available=lambda: available))


@pytest.mark.parametrize(
    "cuda, fake, reason",
    [
        ("no", fake_torch("13.0", available=True), "this build holds no CUDA kernels"),
        ("13.0", fake_torch(None), "torch is a CPU build"),
        ("13.0", fake_torch(None, hip="7.0"), "torch is a ROCm build"),
        ("13.0", fake_torch("13.0"), "torch sees no GPU"),
        ("13.0", fake_torch("13.0", available=True), None),
    ],
)
def test_says_why_no_cuda_kernel_runs(cuda, fake, reason):
    obstacle = info.cuda_obstacle({"cuda": cuda}, fake)
    assert obstacle is None if reason is None else obstacle.startswith(reason)


def test_a_kernel_that_computes_something_else_or_fails_is_not_live(monkeypatch):
    def fails(*_):
        raise RuntimeError("no kernel image\nis available for execution on the device")

    monkeypatch.setitem(info.PROBES, "topk_lista", lambda *_: 2.0)
    assert "cpu no: it computes 2.0 instead of 1" in info.report()
    monkeypatch.setitem(info.PROBES, "topk_lista", fails)
    assert "cpu no: RuntimeError: no kernel image is available for execution on the device" in info.report()
    monkeypatch.delitem(info.PROBES, "topk_lista")
    assert "cpu no: KeyError: 'topk_lista'" in info.report()


def test_a_missing_library_is_said_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(info, "__file__", str(tmp_path / "info.py"))
    assert rows(info.report(), "libraries")["libstratcore"].startswith("no: not built: run 'pip install .'")
    (tmp_path / "libstratcore.so").write_bytes(b"not a library")
    libraries = rows(info.report(), "libraries")
    assert libraries["libstratcore"].startswith("no: ") and "libstratcore.so" in libraries["libstratcore"]
    assert rows(info.report(), "kernels") == {"none": "the library does not load"}
