"""`python -m stratcore.train`: trains a recipe and writes its run folder."""

from __future__ import annotations

import sys

from stratcore.cli import train


def main() -> int:
    """Entry point; returns the exit code."""
    return train(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
