"""`python -m stratcore.train [RECIPE] [--config FILE] [key=value ...]`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from stratcore.cli.command import Parser, execute_run, open_folder
from stratcore.recipes.settings import UsageError, dump, load_run

PROGRAM = "python -m stratcore.train"


def train(argv: Sequence[str]) -> int:
    """Runs `python -m stratcore.train` with these arguments and returns the exit code."""
    from stratcore.recipes import RECIPES

    try:
        arguments = _parse(argv)
        run = load_run(RECIPES, arguments.recipe, arguments.config, arguments.settings)
        if arguments.print_config:
            print(dump(run), end="")
            return 0
        folder = open_folder(arguments.output, run.recipe, arguments.resume)
        return execute_run(run, folder, arguments.resume, shlex.join([*PROGRAM.split(), *argv]))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"stratcore: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    from stratcore.recipes import RECIPES

    listing = "\n".join(
        f"  {name:25}{(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items()
    )
    parser = Parser(
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
    parser.add_argument(
        "--reproduce-artefact",
        action="store_true",
        help="run the source document's own procedure instead (compare_classifiers); short for "
        "reproduce_artefact=true",
    )
    arguments = parser.parse_intermixed_args(argv)
    recipes = [word for word in arguments.words if "=" not in word]
    if len(recipes) > 1:
        raise UsageError(f"expected one recipe, got {' and '.join(recipes)}")
    arguments.recipe = recipes[0] if recipes else None
    arguments.settings = [word for word in arguments.words if "=" in word]
    if arguments.reproduce_artefact:
        arguments.settings.append("reproduce_artefact=true")
    if arguments.resume and arguments.output is None:
        raise UsageError("--resume: expected --output DIR, the run folder to go on with")
    return arguments
