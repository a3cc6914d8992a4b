"""Finds torch and Python, then lets CMake build: CMakeLists.txt owns every source and option."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def say(text: str) -> None:
    print(f"stratcore: {text}", file=sys.stderr)


def choice(name: str) -> str:
    value = os.environ.get(name, "auto").lower()
    if value not in ("auto", "on", "off"):
        sys.exit(f"stratcore: {name} must be auto, on or off, got '{value}'")
    return value


def find_torch() -> Path | None:
    """Folder of the torch package to build against, without importing it.

    An isolated build hides site-packages from the import system; sysconfig still names it.
    """
    if named := os.environ.get("STRATCORE_TORCH_DIR"):
        return Path(named)
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    folders += [Path(sysconfig.get_path(key)) / "torch" for key in ("purelib", "platlib")]
    return next((f for f in folders if (f / "include/torch/csrc/stable/library.h").is_file()), None)


def with_array() -> bool:
    wanted = choice("STRATCORE_ARRAY")
    present = importlib.util.find_spec("nanobind") is not None
    if wanted == "on" and not present:
        sys.exit("stratcore: STRATCORE_ARRAY=on, but nanobind is not installed in the build environment")
    return wanted != "off" and present


def run(*command: object) -> None:
    """Runs one step of the build; what went wrong in it has been printed by then."""
    try:
        status = subprocess.run([str(word) for word in command]).returncode
    except FileNotFoundError:
        sys.exit(
            f"stratcore: no {command[0]} here: pip install cmake ninja nanobind, or leave build isolation on"
        )
    if status:
        sys.exit(f"stratcore: {command[0]} {command[1]} ended with status {status}; the reason stands above")


class FreshBuild(build):
    """Starts from an empty build/lib: setuptools packs whatever lies there, a removed module or _array too."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """One CMake build for all extension modules."""

    def get_ext_filename(self, fullname: str) -> str:
        path = Path(*fullname.split("."))
        return f"{path}.abi3.so" if path.name == "_C" else super().get_ext_filename(fullname)

    def run(self) -> None:
        self.in_source = bool(self.inplace or self.editable_mode)
        super().run()

    def copy_extensions_to_source(self) -> None:
        """CMake wrote them, and the library beside them, into the source folder itself."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name != "stratcore._C":
            return  # built by the same call
        target = ROOT / "stratcore" if self.in_source else Path(self.build_lib).resolve() / "stratcore"
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        definitions = {
            # Named afresh each time: the cache of an isolated build points into a deleted environment.
            "CMAKE_MAKE_PROGRAM": shutil.which("ninja"),
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": target,
            "Python_EXECUTABLE": sys.executable,
            "STRATCORE_TORCH_DIR": TORCH,
            "STRATCORE_PYTHON_INCLUDE": sysconfig.get_path("include"),
            "STRATCORE_CUDA": choice("STRATCORE_CUDA"),
            "STRATCORE_ARRAY": "ON" if ARRAY else "OFF",
            "STRATCORE_TESTS": "OFF",
        }
        arguments = [f"-D{key}={value}" for key, value in definitions.items() if value is not None]
        arguments += os.environ.get("CMAKE_ARGS", "").split()
        run("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *arguments)
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        run("cmake", "--build", build, *jobs)


TORCH, ARRAY = find_torch(), with_array()
if TORCH is None:
    say("no torch >= 2.10 in this environment; asking the installer for one to build against")
    setup(setup_requires=["torch>=2.10"])
else:
    say(f"building against torch in {TORCH}; array module: {'yes' if ARRAY else 'no'}")
    # _C fits every Python from 3.10; nanobind's stable ABI begins with 3.12.
    abi3 = "cp310" if not ARRAY else "cp312" if sys.version_info >= (3, 12) else None
    modules = ["stratcore._C"] + (["stratcore._array"] if ARRAY else [])
    setup(
        ext_modules=[Extension(name, sources=[], py_limited_api=abi3 is not None) for name in modules],
        cmdclass={"build": FreshBuild, "build_ext": CMakeBuild},
        options={"bdist_wheel": {"py_limited_api": abi3}} if abi3 else {},
    )
