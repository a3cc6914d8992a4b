"""What an installer sees, and what an import costs."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import stratcore

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
EXTRAS = {"peft", "tensorboard", "dimension", "bench", "test", "dev", "all"}
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "pandas", "pyarrow", "sklearn", "scipy", "numpy")
PIN = re.compile(r'^[\w.-]+==[\w.]+(; python_version (?:>=|<) "3\.11")?$')


def requirement_name(line: str) -> str:
    return re.split(r"[^\w.-]", line, maxsplit=1)[0].lower().replace("_", "-")


def modules_after(statement: str) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter that ran the statement."""
    code = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    # The package that this process tests, whatever folder comes first there.
    search = [str(Path(stratcore.__path__[0]).parent)]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {search}; {code}"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_torch_is_never_held_back(pyproject: dict[str, Any]) -> None:
    asked = [line for line in pyproject["project"]["dependencies"] if requirement_name(line) == "torch"]
    assert asked == ["torch>=2.10"]


def test_build_does_not_ask_for_torch(pyproject: dict[str, Any]) -> None:
    names = {requirement_name(line) for line in pyproject["build-system"]["requires"]}
    assert names == {"setuptools", "cmake", "ninja", "nanobind"}


def test_extras(pyproject: dict[str, Any]) -> None:
    assert set(pyproject["project"]["optional-dependencies"]) >= EXTRAS


def test_version_stands_in_one_place(pyproject: dict[str, Any]) -> None:
    version = pyproject["project"]["version"]
    assert stratcore.__version__ == metadata.version("stratcore") == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_requirement_is_pinned_in_constraints(pyproject: dict[str, Any], pins: list[str]) -> None:
    assert [line for line in pins if not PIN.match(line)] == []
    pinned = {requirement_name(line) for line in pins}
    extras = pyproject["project"]["optional-dependencies"]
    asked = pyproject["project"]["dependencies"] + pyproject["build-system"]["requires"]
    asked = asked + extras["test"] + extras["dev"] + extras["bench"]
    assert {requirement_name(line) for line in asked} - pinned == {"stratcore"}


def test_what_is_pinned_for_newer_pythons_is_pinned_for_3_10_too(pins: list[str]) -> None:
    newer = {requirement_name(line) for line in pins if ">= " in line}
    older = {requirement_name(line) for line in pins if "< " in line}
    # It has no release for 3.10; the development tools leave it out there.
    assert newer - older == {"torch-abi-audit"}


def test_compiled_parts_lie_beside_the_package() -> None:
    """What is tested is a package with its compiled parts, never bare sources that Python found first."""
    folder = Path(stratcore.__path__[0])
    assert (folder / "_C.abi3.so").is_file()
    assert (folder / "libstratcore.so").is_file()


def test_import_is_lazy() -> None:
    assert modules_after("import stratcore").isdisjoint(HEAVY)


@pytest.mark.parametrize("room", ["data", "analysis"])
def test_import_of_a_room_is_lazy(room: str) -> None:
    assert modules_after(f"import stratcore.{room}").isdisjoint(HEAVY)


def test_ops_import_torch_and_nothing_heavier() -> None:
    alone = modules_after("import torch")
    loaded = modules_after("import stratcore.ops")
    assert "torch" in loaded
    assert loaded & set(HEAVY) <= alone | {"torch"}
    assert loaded.isdisjoint({"transformers", "datasets", "matplotlib", "sklearn", "pandas"})


def test_array_needs_no_torch() -> None:
    loaded = modules_after("import stratcore.array")
    assert "numpy" in loaded
    assert "torch" not in loaded
