"""Make the bundled embeddings again: `python -m stratcore.data.bundled [--output DIR]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stratcore.data.bundled.build import build
from stratcore.data.errors import DataError


def main() -> int:
    """Parse the command line, build, and say what was written."""
    parser = argparse.ArgumentParser(prog="python -m stratcore.data.bundled", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    arguments = parser.parse_args()
    try:
        path = build(arguments.output)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
