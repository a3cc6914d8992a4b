"""What every command shares: its parser, its folder, and carrying out a run in it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from stratcore.recipes.settings import UsageError, dump


class Parser(argparse.ArgumentParser):
    """Tells a mistake like every other one, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raises, instead of leaving the program."""
        raise UsageError(f"{message}; --help shows the options")


def open_folder(output: Path | None, recipe: str, resume: bool) -> Path:
    """The run folder; a new name beside earlier runs where none was given. Makes nothing yet."""
    if output is None:
        output, number = Path("runs") / recipe, 1
        while output.exists():
            number += 1
            output = Path("runs") / f"{recipe}-{number}"
    elif output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output}: expected a folder, got a file")
    elif resume and not (output / "config.yaml").is_file():
        raise UsageError(f"--resume: {output} holds no run (no config.yaml)")
    elif not resume and (output / "config.yaml").exists():
        raise FileExistsError(
            f"{output} holds an earlier run; --resume goes on with it, another --output starts anew"
        )
    return output


def execute_run(run: Any, folder: Path, resume: bool, command: str) -> int:
    """Carries out a run in its folder and returns the exit code."""
    from stratcore.recipes import executor_of
    from stratcore.training import NonFiniteError

    config = folder / "config.yaml"
    text = dump(run)
    if resume and config.read_text(encoding="utf-8") != text:
        raise UsageError(
            f"--resume: the settings differ from those in {config}; give the same ones, or --config {config}"
        )

    def record() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config.write_text(text, encoding="utf-8")

    try:
        executor_of(run)(run, folder, resume=resume, command=command, before_training=record)
    except NonFiniteError as error:
        print(f"stratcore: {error}", file=sys.stderr)
        return 1
    if os.environ.get("RANK", "0") == "0":
        print(f"report: {folder / 'report.html'}")
    return 0
