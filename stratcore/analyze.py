"""`python -m stratcore.analyze`: asks whether embeddings are stratified and writes a report."""

from __future__ import annotations

import sys

from stratcore.cli import analyze


def main() -> int:
    """Entry point; returns the exit code."""
    return analyze(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
