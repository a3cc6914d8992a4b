"""Settings of a run: recipe < FILE < key=value, wherever they stand.

Every key must exist; a wrong one is answered with the nearest.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml


class UsageError(ValueError):
    """A mistake in the arguments, told in one line."""


def load_run(
    recipes: Mapping[str, Callable[[], Any]],
    recipe: str | None,
    config: Path | None,
    settings: Iterable[str],
) -> Any:
    """The frozen run of a recipe under a file and settings.

    Args:
        recipes: the known ones; the first is the default.
        recipe: its name; None: the one that the file names, else the default.
        config: YAML file of (some of) the run's keys.
        settings: 'key.sub=value', value in YAML.

    Raises:
        UsageError: unknown recipe or key, or a value of the wrong kind.
    """
    values = _read_config(config) if config is not None else {}
    named = values.pop("recipe", None)
    if named is not None and not isinstance(named, str):
        raise UsageError(f"{config}: recipe: expected a name, got {named!r}")
    if recipe is not None and named is not None and recipe != named:
        raise UsageError(f"{config}: expected recipe {recipe!r} as on the command line, got {named!r}")
    name = recipe or named or next(iter(recipes))
    if name not in recipes:
        raise UsageError(f"unknown recipe {name!r}{_nearest(name, recipes)}; recipes: {', '.join(recipes)}")
    base = recipes[name]()
    tree, known = asdict(base), _keys(type(base))
    _merge(type(base), tree, values, known, f"{config}: ")
    for setting in settings:
        key, _, text = setting.partition("=")
        if key == "recipe":
            raise UsageError("recipe: expected it as a word, not as a setting")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"{setting}: the value is not YAML") from error
        for part in reversed(key.split(".")):
            value = {part: value}
        _merge(type(base), tree, value, known)
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
        raise UsageError(_wrong_type(kind, tree, str(error))) from error
    except ValueError as error:
        raise UsageError(_with_whole_key(kind, str(error))) from error


def _wrong_type(kind: type, tree: Mapping[str, Any], message: str) -> str:
    """'key: expected ..., got ...' out of jsonargparse's message of several lines."""
    found = re.search(r'Parser key "run\.([\w.]+)"', message)
    if found is None:
        return message
    hint, value = kind, tree
    for part in found[1].split("."):
        hint, value = get_type_hints(hint)[part], value[part]
    return f"{found[1]}: expected {_words(hint)}, got {value!r}"


def _with_whole_key(kind: type, message: str) -> str:
    """The message of an option class, which knows its own name of a key, with the key as users write it."""
    name, colon, rest = message.partition(":")
    keys = _keys(kind)
    if name in keys or not re.fullmatch(r"[\w.]+", name):
        return message
    for ending in (name, name.rsplit(".", 1)[-1]):
        whole = [key for key in keys if f".{key}".endswith(f".{ending}")]
        if len(whole) == 1:
            return f"{whole[0]}{colon}{rest}"
    return message


def _words(hint: Any) -> str:
    """A type as users know it."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    plain = isinstance(hint, type) and not get_args(hint)
    return hint.__name__ if plain else str(hint).replace("pathlib.", "")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}: not a YAML file{where}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values


def _merge(
    kind: type,
    tree: dict[str, Any],
    values: Mapping[str, Any],
    known: Sequence[str],
    where: str = "",
    prefix: str = "",
) -> None:
    """Overrides part of a tree of options; every key must be one of the option class `kind`.

    Args:
        kind: option class of the tree.
        tree: is changed.
        values: what to set.
        known: all keys of the run, for suggestions.
        where: where the values stand, for messages.
        prefix: key of the tree in the run.
    """
    hints = get_type_hints(kind)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise UsageError(f"{where}unknown key {name!r}{_nearest(name, known)}")
        part, optional = _part(hints[key]), type(None) in get_args(hints[key])
        if value is None and not optional:
            raise UsageError(f"{where}{name}: expected {_words(hints[key])}, got nothing")
        if part is None or value is None:
            tree[key] = value
        elif isinstance(value, Mapping):
            tree[key] = tree[key] or {}
            _merge(part, tree[key], value, known, where, f"{name}.")
        else:
            first = next(iter(get_type_hints(part)))
            raise UsageError(f"{where}{name}: expected keys below it, such as {name}.{first}, got {value!r}")


def _part(hint: Any) -> Any:
    """The option class of a key that holds further keys; None for a plain value."""
    return next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), None)


def _keys(kind: type, prefix: str = "") -> list[str]:
    names = []
    for key, hint in get_type_hints(kind).items():
        names.append(f"{prefix}{key}")
        part = _part(hint)
        if part is not None:
            names += _keys(part, f"{prefix}{key}.")
    return names


def _nearest(name: str, known: Iterable[str]) -> str:
    """', did you mean ...?' with a key that ends alike, else one that is spelt alike, else nothing."""
    by_end = {key.rsplit(".", 1)[-1]: key for key in known}
    end = name.rsplit(".", 1)[-1]
    close = [by_end[end]] if end in by_end else difflib.get_close_matches(name, known, 1, 0.6)
    close = close or [by_end[each] for each in difflib.get_close_matches(end, by_end, 1, 0.7)]
    return f", did you mean {close[0]!r}?" if close else ""


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
