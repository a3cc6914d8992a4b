"""The rules of csrc, of a whole slice, and of size; see architecture_rules.py for their form."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from python_tests.architecture_rules import Files, python_files

NATIVE = (".cpp", ".h", ".cu", ".cuh")
SHARED_FOLDERS = {"common", "array"}
SLICE = (
    "csrc/{op}/README.md",
    "csrc/{op}/{op}.h",
    "csrc/{op}/{op}_math.h",
    "csrc/{op}/{op}_cpu.cpp",
    "csrc/{op}/{op}_cuda.cu",
    "csrc/{op}/{op}_op.cpp",
    "csrc/{op}/{op}_test.cpp",
    "csrc/array/{op}_array.cpp",
    "stratcore/array/_{op}.py",
    "stratcore/ops/{op}.py",
    "stratcore/ops/reference/{op}.py",
    "python_tests/ops/test_{op}.py",
    "bench/ops/bench_{op}.py",
)
FILE_LINES = {".py": 400, ".cpp": 400, ".h": 400, ".cuh": 400, ".cu": 600}
FUNCTION_LINES, KERNEL_LINES = 60, 150
# Path, or path::function, and why it may be longer. An entry that is no longer needed is a breach too.
LONGER: dict[str, str] = {
    "csrc/toroidal_attention/backward_keys_wgmma.cuh::compute": "one pipeline: products in flight share registers",
    "csrc/tangent_projection/fused_rows.cuh": "one kernel: what its three kinds of warps hand to each other",
    "stratcore/layers/context_parallel.py::context_parallel_attention": "eighteen arguments, each explained",
    "stratcore/ops/toroidal_attention.py::toroidal_attention": "fifteen arguments, each explained; two statements",
}


def native_files(files: Files) -> Iterator[tuple[str, str]]:
    for path, text in files.items():
        if path.startswith(("csrc/", "bench/native/")) and path.endswith(NATIVE):
            yield path, text


def ops_of(files: Files) -> list[str]:
    folders = {
        PurePosixPath(path).parts[1] for path in files if path.startswith("csrc/") and path.count("/") > 1
    }
    return sorted(folders - SHARED_FOLDERS)


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def may_include_torch(path: str) -> bool:
    return path.endswith("_op.cpp") or path in ("csrc/common/torch_op.h", "csrc/module.cpp")


def includes(files: Files) -> list[str]:
    """No op includes another, common includes no op, and torch is seen from the torch side of an op alone."""
    found = []
    for path, text in native_files(files):
        if not path.startswith("csrc/"):
            continue
        folder = PurePosixPath(path).parts[1]
        for match in re.finditer(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', text, re.MULTILINE):
            name = match[1]
            where = f"{path}:{line_of(text, match.start())}: includes {name}"
            other = {part for part in PurePosixPath(name).parts[:-1] if part in ops_of(files)} - {folder}
            if other and folder != "array":
                found.append(where)
            torch = name.startswith(("torch/", "ATen/", "c10/")) or name.endswith("torch_op.h")
            if torch and not may_include_torch(path):
                found.append(f"{where}, but is no *_op.cpp")
            if name.startswith("nanobind/") and folder != "array":
                found.append(f"{where}, which belongs to csrc/array")
    return found


def whole_slices(files: Files) -> list[str]:
    """Every op has every file of the slice, under one name, and CMake builds it."""
    ops = ops_of(files)
    missing = [path for op in ops for path in (row.format(op=op) for row in SLICE) if path not in files]
    named = re.search(r"^set\(OPS ([^)]*)\)", files.get("CMakeLists.txt", ""), re.MULTILINE)
    built = sorted(named[1].split()) if named else []
    found = [f"{path}:1: is missing" for path in missing]
    return found if built == ops else [*found, f"CMakeLists.txt:1: builds {built}, csrc holds {ops}"]


def launches_checked(files: Files) -> list[str]:
    """launch_status() stands within three lines of every kernel launch."""
    found = []
    for path, text in native_files(files):
        for match in re.finditer("<<<", text):
            after = text[text.find(";", match.end()) + 1 :]
            if "launch_status()" not in "\n".join(after.split("\n")[:4]):
                found.append(f"{path}:{line_of(text, match.start())}: launch without launch_status()")
    return found


def no_synchronization(files: Files) -> list[str]:
    """Kernels are queued; waiting for them is the caller's affair (and breaks capture into a CUDA graph)."""
    return [
        f"{path}:{line_of(text, match.start())}: {match[0]}"
        for path, text in native_files(files)
        if path.startswith("csrc/")
        for match in re.finditer(r"\bcuda(Device|Stream|Event)Synchronize\b|\bcudaMemcpy\b", text)
    ]


def python_functions(files: Files) -> Iterator[tuple[str, str, int, int, int]]:
    for path, tree in python_files(files, "stratcore/", "python_tests/", "bench/", ".ci/", "setup.py"):
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield path, node.name, node.lineno, (node.end_lineno or 0) - node.lineno + 1, FUNCTION_LINES


def without_text(source: str) -> str:
    """Comments and literals as blanks, so that their brackets do not count; lines keep their numbers."""
    token = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|^[ \t]*#(?:\\\n|[^\n])*'
    blank = lambda match: re.sub(r"[^\n]", " ", match[0])  # noqa: E731
    return re.sub(token, blank, source, flags=re.DOTALL | re.MULTILINE)


CONTROL = {"if", "for", "while", "switch", "catch"}


def native_functions(files: Files) -> Iterator[tuple[str, str, int, int, int]]:
    """Functions and lambdas by brace matching: a block whose head, since the last `;`, `{` or `}`, has a `name(`."""
    for path, text in native_files(files):
        code = re.sub(r"__launch_bounds__\([^)]*\)", "", without_text(text))
        stack: list[str] = []
        starts: list[int] = []
        head = 0
        for match in re.finditer(r"[{};]", code):
            if match[0] == "{":
                stack.append(code[head : match.start()])
                starts.append(head)
            elif match[0] == "}" and stack:
                opening, start = stack.pop(), starts.pop()
                name = re.search(r"([~\w]+)\s*\(", opening)
                if name and name[1] not in CONTROL:
                    first = line_of(code, start + len(opening) - len(opening.lstrip()))
                    limit = KERNEL_LINES if "__global__" in opening else FUNCTION_LINES
                    yield path, name[1], first, line_of(code, match.start()) - first + 1, limit
            head = match.end()


def budgets(files: Files) -> list[str]:
    """Files and functions stay within their size, or are named in LONGER with a reason."""
    sizes = [
        (path, 1, len(text.splitlines()), FILE_LINES[PurePosixPath(path).suffix])
        for path, text in files.items()
        if PurePosixPath(path).suffix in FILE_LINES
    ]
    for path, name, line, length, limit in (*python_functions(files), *native_functions(files)):
        sizes.append((f"{path}::{name}", line, length, limit))
    over = {
        name: f"{name}:{line}: {length} lines, of {limit}"
        for name, line, length, limit in sizes
        if length > limit
    }
    found = [text for name, text in over.items() if name not in LONGER]
    unused = [name for name in LONGER if name not in over and name.split("::")[0] in files]
    return [*found, *(f"{name}:1: is named in LONGER, but fits" for name in unused)]
