"""`python -m stratcore.analyze [WORKFLOW] [TARGET] [--texts SET ...] [--config FILE] [key=value ...]`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from stratcore.cli.command import Parser, execute_run, open_folder
from stratcore.cli.scan import scan
from stratcore.recipes.settings import UsageError, dump, load_run

PROGRAM = "python -m stratcore.analyze"
TABLES = (".npy", ".safetensors", ".parquet", ".csv")


def analyze(argv: Sequence[str]) -> int:
    """Runs `python -m stratcore.analyze` with these arguments and returns the exit code."""
    from stratcore.recipes import ANALYSES

    if argv and argv[0] == "scan":
        return scan(argv[1:])
    try:
        arguments = _parse(argv)
        target = [] if arguments.target is None else target_settings(arguments.target, arguments.texts)
        settings = [*target, *arguments.settings]
        run = load_run(ANALYSES, arguments.workflow, arguments.config, settings)
        if arguments.print_config:
            print(dump(run), end="")
            return 0
        folder = open_folder(arguments.output, run.recipe, resume=False)
        return execute_run(run, folder, False, shlex.join([*PROGRAM.split(), *argv]))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"stratcore: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def target_settings(target: str, texts: Sequence[str]) -> list[str]:
    """What a target means as settings.

    A folder with a config.yaml and checkpoints is a run; a file of a known kind holds embeddings; everything else
    is a model: with texts their embeddings are analyzed, without its token embeddings.

    Raises:
        UsageError: texts beside something that is no model.
    """
    path = Path(target)
    if (path / "config.yaml").is_file():
        settings = {"data.run": target}
    elif path.suffix.lower() in TABLES or target == "bundled":
        settings = {"data.source": target}
    else:
        model = {"data.encoder": target}
        return _as_words(model | ({"data.texts": list(texts)} if texts else {}))
    if texts:
        raise UsageError(f"--texts: expected a model before it, got {target}")
    return _as_words(settings)


def _as_words(settings: Mapping[str, object]) -> list[str]:
    """Settings as on the command line; JSON is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    from stratcore.recipes import ANALYSES

    listing = "\n".join(
        f"  {name:16}{(make.__doc__ or '').splitlines()[0]}" for name, make in ANALYSES.items()
    )
    parser = Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Ask whether embeddings are stratified, and write results.json, plots/ and report.html.",
        epilog=f"workflows:\n{listing}\n\ntargets: the folder of a trained run; a file of embeddings "
        f"({', '.join(TABLES)});\n  a Hugging Face model (folder, .gguf file or hub name), with --texts for "
        "embeddings of texts,\n  without for its token embeddings; nothing: the bundled embeddings.\n\n"
        f"{PROGRAM} scan FILE describes the geometry of a file of embeddings\n  and ends with exit code 3 if "
        "they have collapsed.\n\n"
        f"keys: --print_config shows them all; for example\n  {PROGRAM} embeddings.npy tests.window=[10,200] seed=1",
    )
    parser.add_argument(
        "words", nargs="*", metavar="WORKFLOW | TARGET | key=value", help="what to do, with what"
    )
    parser.add_argument("--texts", nargs="+", default=[], metavar="SET", help="text sets by name or file")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder (default: runs/WORKFLOW, then -2, ...)"
    )
    parser.add_argument(
        "--print_config", action="store_true", help="print the resolved configuration and stop"
    )
    arguments = parser.parse_intermixed_args(argv)
    arguments.settings = [word for word in arguments.words if "=" in word]
    names = [word for word in arguments.words if "=" not in word]
    workflows = [name for name in names if name in ANALYSES]
    targets = [name for name in names if name not in ANALYSES]
    if len(workflows) > 1 or len(targets) > 1:
        raise UsageError(f"expected one workflow and one target, got {' '.join(names)}")
    arguments.workflow = workflows[0] if workflows else None
    arguments.target = targets[0] if targets else None
    if arguments.texts and arguments.target is None:
        raise UsageError("--texts: expected a model too, such as a folder or a hub name")
    return arguments
