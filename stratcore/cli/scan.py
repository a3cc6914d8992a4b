"""`python -m stratcore.analyze scan FILE [--before FILE] [--anchors FILE]`: geometry of rows, and their collapse."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from stratcore.cli.command import Parser

PROGRAM = "python -m stratcore.analyze scan"


def scan(argv: Sequence[str]) -> int:
    """Prints the scan and the verdict; returns 0, 3 for collapsed rows, 2 for a mistake."""
    from stratcore import analysis
    from stratcore.data import load_table

    parser = Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Describe the geometry of a file of embeddings, each number beside its random baseline, and end "
        "with exit code 3 if the rows have collapsed: for use between the steps of a training script.",
    )
    parser.add_argument("file", metavar="FILE", help="embeddings: .npy, .safetensors, .parquet or .csv")
    parser.add_argument("--before", metavar="FILE", help="rows of an earlier step, to compare with")
    parser.add_argument("--anchors", type=Path, metavar="FILE", help="anchors, whose use is counted")
    parser.add_argument("--seed", type=int, default=0, help="of draws and baselines")
    try:
        arguments = parser.parse_args(argv)
        rows = load_table(arguments.file).embeddings
        anchors = None if arguments.anchors is None else load_table(arguments.anchors).embeddings
        options = analysis.CollapseOptions(warmup=1, patience=1, seed=arguments.seed)
        detector = analysis.CollapseDetector(options)
        if arguments.before is not None:
            detector.update(0, load_table(arguments.before).embeddings, anchors)
        verdict = detector.update(1, rows, anchors)
        found = analysis.scan_geometry(rows, anchors=anchors, seed=arguments.seed)
    except (ValueError, OSError) as error:
        print(f"stratcore: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print("\n".join(analysis.describe_scan(found)))
    print(f"collapsed: {'; '.join(verdict.reasons)}" if verdict.collapsed else "no sign of collapse")
    return analysis.collapse_exit_code(verdict)
