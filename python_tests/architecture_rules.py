"""The rules of the house, as functions of the source files alone; `test_architecture.py` holds the tree to them.

A rule takes `Files`, every text file of the project by its path from the root, and returns one line for each
breach: "path:line: what is wrong". So a planted breach is a dictionary of one or two short strings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath

Files = Mapping[str, str]

ROOT = Path(__file__).parents[1]
FOLDERS = ("stratcore", "csrc", "python_tests", "bench", "cmake", ".ci")
SUFFIXES = {
    ".py",
    ".cpp",
    ".h",
    ".cu",
    ".cuh",
    ".md",
    ".cmake",
    ".toml",
    ".txt",
    ".yaml",
    ".jinja",
    ".sh",
    "",
}

# A room may import itself and these; a file directly under stratcore/ is a room of its own.
MAY_IMPORT = {
    "__init__": set(),
    "array": {"_array"},
    "ops": {"_C"},
    "ops.reference": set(),
    "layers": {"ops"},
    "models": {"ops", "layers"},
    "huggingface": {"ops", "layers", "models"},
    "data": set(),
    "analysis": {"ops", "data"},
    "training": {"ops", "layers", "models", "data", "analysis"},
    "recipes": {"ops", "layers", "models", "huggingface", "data", "analysis", "training"},
    "info": {"_C", "_array", "ops", "array"},
    "cli": {"ops", "layers", "models", "huggingface", "data", "analysis", "training", "recipes", "info"},
    "train": {"cli"},
    "analyze": {"cli"},
}
TYPES_ONLY = {("analysis", "data")}
HEAVY = {
    "matplotlib": ("stratcore/analysis/plots/", "stratcore/analysis/report.py"),
    "transformers": ("stratcore/huggingface/", "stratcore/models/", "stratcore/data/"),
}
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def read_project() -> dict[str, str]:
    """Text files of the project by path; build outputs, caches and a worktree's .git are left out."""
    paths = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    for folder in FOLDERS:
        paths += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    kept = [path for path in paths if path.suffix in SUFFIXES and "__pycache__" not in path.parts]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(kept)}


@cache
def parse(text: str) -> ast.Module:
    return ast.parse(text)


def python_files(files: Files, *folders: str) -> Iterator[tuple[str, ast.Module]]:
    for path, text in files.items():
        if path.endswith(".py") and path.startswith(folders):
            yield path, parse(text)


def module_name(path: str) -> str:
    """stratcore/ops/topk_lista.py -> stratcore.ops.topk_lista; a package has the name of its folder."""
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    parts = module.split(".")[1:]
    if parts[:2] == ["ops", "reference"]:
        return "ops.reference"
    return parts[0] if parts else "__init__"


def type_checking_nodes(tree: ast.Module) -> set[ast.AST]:
    guards = (n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
    return {node for guard in guards for child in guard.body for node in ast.walk(child)}


def imports(path: str, tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Names of the modules that a file imports, wherever in it; `import_module("name")` counts too."""
    package = module_name(path).split(".")
    if not path.endswith("__init__.py"):
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            # `from stratcore import ops` names a room; `from stratcore.ops import x` has named it already.
            yield from (
                (f"{source}.{a.name}" if source in ("stratcore", "stratcore.ops") else source, node)
                for a in node.names
            )
        elif isinstance(node, ast.Call) and call_name(node).endswith("import_module") and node.args:
            if isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value), node


def call_name(node: ast.Call) -> str:
    return ast.unparse(node.func)


def import_direction(files: Files) -> list[str]:
    """_C <- ops <- layers <- models <- training <- recipes <- cli; nothing imports the tests or the benches."""
    found = []
    for path, tree in python_files(files, "stratcore/"):
        room, typed = room_of(module_name(path)), type_checking_nodes(tree)
        if room not in MAY_IMPORT:
            found.append(f"{path}:1: room {room!r} has no place in MAY_IMPORT")
            continue
        for name, node in imports(path, tree):
            if name.split(".")[0] in ("python_tests", "bench"):
                found.append(f"{path}:{node.lineno}: imports {name}")
            if name.split(".")[0] != "stratcore" or name == "stratcore":
                continue
            target = room_of(name)
            if target.startswith("__"):
                continue  # an attribute of the package itself, such as __version__
            if target != room and target not in MAY_IMPORT[room]:
                found.append(f"{path}:{node.lineno}: {room} imports {name}")
            elif (room, target) in TYPES_ONLY and node not in typed:
                found.append(f"{path}:{node.lineno}: {room} imports {name}, which it may for types only")
    return found


def heavy_imports(files: Files) -> list[str]:
    """matplotlib and transformers are imported only where they belong."""
    return [
        f"{path}:{node.lineno}: imports {name}"
        for path, tree in python_files(files, "stratcore/")
        for name, node in imports(path, tree)
        if name.split(".")[0] in HEAVY and not path.startswith(HEAVY[name.split(".")[0]])
    ]


def unsafe_call(node: ast.Call) -> str | None:
    name = call_name(node)
    keywords = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
    given = {k.arg for k in node.keywords}
    if name == "torch.load":
        return "torch.load"
    if name in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"):
        loaders = [ast.unparse(k.value) for k in node.keywords if k.arg == "Loader"]
        loaders += [ast.unparse(a) for a in node.args[1:2]]
        return None if any("SafeLoader" in loader for loader in loaders) else f"{name} without a safe loader"
    if "weights_only" in given and keywords.get("weights_only") is not True:
        return "weights_only is not True"
    for flag in ("trust_remote_code", "allow_pickle"):
        if flag in given and keywords.get(flag) is not False:
            return f"{flag} is not False"
    return None


def unsafe_loading(files: Files) -> list[str]:
    """No file is read in a way that can run code out of it."""
    found = []
    for path, tree in python_files(files, "stratcore/", "bench/"):
        for name, node in imports(path, tree):
            if name.split(".")[0] in UNSAFE_MODULES:
                found.append(f"{path}:{node.lineno}: imports {name}")
        for node in ast.walk(tree):
            reason = unsafe_call(node) if isinstance(node, ast.Call) else None
            if reason:
                found.append(f"{path}:{node.lineno}: {reason}")
    return found


def no_catch_all_modules(files: Files) -> list[str]:
    """A helper lives with its one user, or in the lowest layer that all its users share."""
    vague = {"utils", "util", "helpers", "misc", "common_utils"}
    return [f"{path}:1: named {vague & parts}" for path in files if (parts := {*name_parts(path)}) & vague]


def name_parts(path: str) -> tuple[str, ...]:
    return PurePosixPath(path).with_suffix("").parts


def bench_clock(files: Files) -> list[str]:
    """Benches read perf_counter or CUDA events: time.time() is neither monotonic nor fine enough."""
    found = []
    for path, tree in python_files(files, "bench/"):
        for node in ast.walk(tree):
            clock = isinstance(node, ast.Attribute) and ast.unparse(node) == "time.time"
            taken = isinstance(node, ast.ImportFrom) and node.module == "time"
            if clock or (taken and any(alias.name == "time" for alias in node.names)):
                found.append(f"{path}:{node.lineno}: time.time")
    return found


# Files that have no test of their own name, and why.
TESTED_ELSEWHERE = {
    "stratcore/train.py": "one line onto cli: cli/test_training.py",
    "stratcore/analyze.py": "one line onto cli: cli/test_analysis.py",
    "stratcore/info.py": "what it prints: test_info.py",
    "stratcore/ops/topk_ste.py": "the selection of topk_lista alone: test_topk_lista.py",
    "stratcore/ops/reference/": "the definitions that the tests of the ops compare with",
    "stratcore/data/errors.py": "one exception class, expected by every test of the room",
    "stratcore/data/registry.py": "names of sets and models: test_texts.py and test_hub.py",
    "stratcore/data/table_columns.py": "a half of load_table: test_table.py",
    "stratcore/data/table_files.py": "a half of load_table: test_table.py",
    "stratcore/data/embedding_cache.py": "the cache of embed_texts: test_embeddings.py",
    "stratcore/data/bundled/": "test_bundled.py tests the asset and what makes it",
}


def mirrored_tests(files: Files) -> list[str]:
    """stratcore/<room>/<file>.py has python_tests/<room>/test_<file>.py; private files are tested through theirs."""
    found = []
    for path in files:
        name = PurePosixPath(path)
        if not path.startswith("stratcore/") or name.suffix != ".py" or name.name.startswith("_"):
            continue
        test = PurePosixPath("python_tests", *name.parts[1:-1], f"test_{name.name}")
        if test.as_posix() not in files and not path.startswith(tuple(TESTED_ELSEWHERE)):
            found.append(f"{path}:1: has no {test}")
    return found


def unannotated(function: ast.FunctionDef | ast.AsyncFunctionDef, method: bool) -> list[str]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    static = any(ast.unparse(d) == "staticmethod" for d in function.decorator_list)
    named = named[1:] if method and not static else named
    named += [a for a in (arguments.vararg, arguments.kwarg) if a]
    missing = [a.arg for a in named if a.annotation is None]
    return missing if function.returns is not None else [*missing, "the result"]


def documented(files: Files) -> list[str]:
    """Public functions and classes say what they do, and every argument of theirs has a type."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for path, tree in python_files(files, "stratcore/"):
        public = [n for n in tree.body if isinstance(n, (*functions, ast.ClassDef)) and n.name[0] != "_"]
        for node in public:
            if not ast.get_docstring(node):
                found.append(f"{path}:{node.lineno}: {node.name} has no docstring")
            methods = node.body if isinstance(node, ast.ClassDef) else [node]
            for function in methods:
                if not isinstance(function, functions) or function.name[0] == "_":
                    continue
                if missing := unannotated(function, method=function is not node):
                    found.append(f"{path}:{function.lineno}: {function.name} leaves {missing} without a type")
    return found


# Brackets keep the expressions from finding themselves; torch.library and pytest's scope are no such words.
OUT_OF_PLACE = re.compile(
    r"(?<![\w.~])/(w[o]rk|f[a]rm|r[o]ot|o[p]t|h[o]me)/|/t[m]p/[a-z]|(?<!\w)[.]library\b|[p]ypi[.]org"
    r"|(?<![\x22\x27])\bs[e]ssions?\b|\bAI a[g]ent|\bw[o]rkplace\b|\bs[e]ed's author"
)


def places_and_people(files: Files) -> list[str]:
    """The project speaks of itself, never of a machine's folders or of who wrote it."""
    return [
        f"{path}:{number}: {match[0]!r}"
        for path, text in files.items()
        for number, line in enumerate(text.splitlines(), 1)
        if (match := OUT_OF_PLACE.search(line))
    ]
