"""The command line: arguments -> recipe -> run.

    python -m stratcore.train [RECIPE] [--config FILE] [key=value ...]

Precedence: recipe < FILE < key=value, wherever they stand. Every key must exist; a wrong one is answered with the
nearest. User errors are one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import yaml

PROGRAM = "python -m stratcore.train"


class UsageError(ValueError):
    """A mistake in the arguments, told in one line."""


def train(argv: Sequence[str]) -> int:
    """Runs `python -m stratcore.train` with these arguments and returns the exit code."""
    try:
        arguments = _parse(argv)
        run = load_run(arguments.recipe, arguments.config, arguments.settings)
        if arguments.print_config:
            print(dump(run), end="")
            return 0
        folder = _open_folder(arguments.output, run.recipe, arguments.resume)
        return _execute(run, folder, arguments.resume, shlex.join([PROGRAM, *argv]))
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        print(f"stratcore: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    from stratcore.recipes import RECIPES

    listing = "\n".join(
        f"  {name:22}{(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items()
    )
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a recipe and write its run folder: config.yaml, metrics.jsonl, results.json, plots/, "
        "report.html and checkpoints.",
        epilog=f"recipes:\n{listing}\n\nkeys: --print_config shows them all; for example\n"
        f"  {PROGRAM} data.source=embeddings.npy model.atoms=128 stage.steps=1000 seed=1",
    )
    parser.add_argument("words", nargs="*", metavar="RECIPE | key=value", help="recipe name and settings")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file of settings, such as a config.yaml"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="run folder (default: runs/RECIPE, then -2, ...)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output")
    parser.add_argument(
        "--print_config", action="store_true", help="print the resolved configuration and stop"
    )
    arguments = parser.parse_intermixed_args(argv)
    recipes = [word for word in arguments.words if "=" not in word]
    if len(recipes) > 1:
        raise UsageError(f"expected one recipe, got {' and '.join(recipes)}")
    arguments.recipe = recipes[0] if recipes else None
    arguments.settings = [word for word in arguments.words if "=" in word]
    if arguments.resume and arguments.output is None:
        raise UsageError("--resume: expected --output DIR, the run folder to go on with")
    return arguments


def load_run(recipe: str | None, config: Path | None, settings: Iterable[str]) -> Any:
    """The frozen run of a recipe under a file and settings.

    Args:
        recipe: its name; None: the one that the file names, else 'dictionary_moe'.
        config: YAML file of (some of) the run's keys.
        settings: 'key.sub=value', value in YAML.

    Raises:
        UsageError: unknown recipe or key, or a value of the wrong kind.
    """
    from stratcore.recipes import RECIPES

    values = _read_config(config) if config is not None else {}
    named = values.pop("recipe", None)
    if recipe is not None and named is not None and recipe != named:
        raise UsageError(f"{config}: expected recipe {recipe!r} as on the command line, got {named!r}")
    name = recipe or named or "dictionary_moe"
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}{_nearest(name, RECIPES)}; recipes: {', '.join(RECIPES)}")
    base = RECIPES[name]()
    tree = asdict(base)
    _merge(tree, values, str(config))
    for setting in settings:
        key, _, text = setting.partition("=")
        if key == "recipe":
            raise UsageError("recipe: expected it as a word, not as a setting")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"{setting}: the value is not YAML") from error
        _set(tree, key.split("."), value)
    return _build(type(base), tree)


def dump(run: Any) -> str:
    """A run as YAML that reruns alone."""
    return yaml.safe_dump(_plain(asdict(run)), sort_keys=False)


def _build(kind: type, tree: Mapping[str, Any]) -> Any:
    """One typed, validated construction of the frozen dataclasses."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "run")
    try:
        parsed = parser.parse_object({"run": _plain(tree)})
        return parser.instantiate(parsed).run
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise UsageError(_first_reason(str(error))) from error


def _first_reason(text: str) -> str:
    """The useful line of jsonargparse's message."""
    lines = [line.strip(" -") for line in text.splitlines() if line.strip(" -")]
    wanted = [line for line in lines if "Parser key" in line or "xpected" in line]
    return "; ".join(dict.fromkeys(wanted[:2])) if wanted else lines[0]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}: not a YAML file{where}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values


def _merge(tree: dict[str, Any], values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in tree:
            raise UsageError(f"{where}: unknown key {name!r}{_nearest(name, _keys(tree, prefix))}")
        if isinstance(tree[key], dict) and isinstance(value, Mapping):
            _merge(tree[key], value, where, f"{name}.")
        else:
            tree[key] = value


def _set(tree: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    node, name = tree, ".".join(parts)
    for depth, part in enumerate(parts):
        if not isinstance(node, dict) or part not in node:
            raise UsageError(f"unknown key {name!r}{_nearest(name, _keys(tree))}")
        if depth < len(parts) - 1:
            node = node[part]
    if isinstance(node[parts[-1]], dict) and not isinstance(value, dict):
        raise UsageError(f"{name}: expected keys below it, such as {name}.{next(iter(node[parts[-1]]))}=...")
    if isinstance(value, dict) and isinstance(node[parts[-1]], dict):
        _merge(node[parts[-1]], value, name, f"{name}.")
    else:
        node[parts[-1]] = value


def _keys(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in tree.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, dict):
            names += _keys(value, f"{prefix}{key}.")
    return names


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, 1, 0.6)
    if not close:
        last = name.rsplit(".", 1)[-1]
        close = [
            key
            for key in known
            if key.rsplit(".", 1)[-1] in difflib.get_close_matches(last, [key.rsplit(".", 1)[-1]], 1, 0.7)
        ][:1]
    return f", did you mean {close[0]!r}?" if close else ""


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _open_folder(output: Path | None, recipe: str, resume: bool) -> Path:
    """The run folder; a new name beside earlier runs where none was given."""
    if output is None:
        output, number = Path("runs") / recipe, 1
        while output.exists():
            number += 1
            output = Path("runs") / f"{recipe}-{number}"
    elif resume and not (output / "config.yaml").is_file():
        raise UsageError(f"--resume: {output} holds no run (no config.yaml)")
    elif not resume and (output / "config.yaml").exists():
        raise FileExistsError(
            f"{output} holds an earlier run; --resume goes on with it, another --output starts anew"
        )
    return output


def _execute(run: Any, folder: Path, resume: bool, command: str) -> int:
    from stratcore.recipes.dictionary_moe_run import execute

    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    text = dump(run)
    if resume and config.read_text(encoding="utf-8") != text:
        raise UsageError(
            f"--resume: the settings differ from those in {config}; give the same ones, or --config {config}"
        )
    try:
        execute(
            run,
            folder,
            resume=resume,
            command=command,
            before_training=lambda: config.write_text(text, encoding="utf-8"),
        )
    except BaseException:
        if created and not config.exists():
            _remove_empty(folder)
        raise
    print(f"report: {folder / 'report.html'}")
    return 0


def _remove_empty(folder: Path) -> None:
    """Leaves no empty run folder behind where the input was refused before any training."""
    if not any(folder.iterdir()):
        folder.rmdir()
