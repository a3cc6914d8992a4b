"""Tables of benchmark rows: the providers of one run side by side, or two runs against each other.

python -m bench.compare RUN.jsonl              stratcore against the fastest other provider of each case
python -m bench.compare BEFORE.jsonl AFTER.jsonl   every row against itself before
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
SUBJECT = "stratcore"
HOST_BOUND = 1.2  # wall time over device time
NOISY = 1.5  # p80 over p20


def read_rows(path: Path) -> list[Row]:
    """Rows of a JSONL file."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
            _key(row), row["gate"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: expected a benchmark row, got {line[:60]!r}") from error
        rows.append(row)
    return rows


def summarize(rows: Sequence[Row]) -> str:
    """One run: all providers of a case and mode together, slower cases of stratcore marked.

    The last columns compare stratcore with the fastest other provider: device time, and wall time, which counts
    the host's part too.
    """
    header = [
        "case", "mode", "provider", "p50 ms", "p20..p80", "wall ms", "peak MiB", "GB/s", "TFLOP/s", "roofline",
        "error", "vs best", "wall vs best", "",
    ]  # fmt: skip
    cells = []
    for row in rows:
        others = [other for other in rows if _case(other) == _case(row) and other["provider"] != SUBJECT]
        cells.append([*_measured(row), *_against(row, others)])
    return format_table(header, cells)


def compare(before: Sequence[Row], after: Sequence[Row], tolerance: float = 0.05) -> str:
    """Two runs: time before and after; slower is more than `tolerance` and more than the spread of both."""
    old, new = ({_key(row): row for row in rows} for rows in (before, after))
    header = ["case", "mode", "provider", "before ms", "after ms", "times faster", "wall faster", ""]
    cells = []
    for key in [*old, *(key for key in new if key not in old)]:
        first, second = old.get(key), new.get(key)
        row = first or second
        label = [row["case"], row["mode"], row["provider"]]
        if first is None or second is None:
            cells.append([*label, "", "", "", "", f"only in {'after' if first is None else 'before'}"])
        elif not (first["gate"] and second["gate"]):
            failed = " and ".join(n for n, r in (("before", first), ("after", second)) if not r["gate"])
            cells.append([*label, "", "", "", "", f"GATE FAILED {failed}"])
        else:
            ratios = [first[name] / second[name] for name in ("p50_ms", "wall_ms")]
            times = [_number(first["p50_ms"]), _number(second["p50_ms"]), *(f"{r:.2f}" for r in ratios)]
            cells.append([*label, *times, _verdict(first, second, tolerance)])
    return "\n".join([*_differences(before, after), format_table(header, cells)])


def format_table(header: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """Aligned columns: text (the first three and the last) to the left, numbers to the right."""
    lines = [list(header), *(list(line) for line in cells)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def align(column: int, text: str) -> str:
        left = column < 3 or column == len(header) - 1
        return text.ljust(widths[column]) if left else text.rjust(widths[column])

    return "\n".join(
        "  ".join(align(column, text) for column, text in enumerate(line)).rstrip() for line in lines
    )


def _case(row: Row) -> tuple:
    return row["op"], row["case"], row["mode"], row["dtype"], row["matmul_precision"]


def _key(row: Row) -> tuple:
    return *_case(row), row["provider"]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _measured(row: Row) -> list[str]:
    label = [row["case"], row["mode"], row["provider"]]
    error = "-" if row["relative_error"] is None else f"{row['relative_error']:.1e}"
    if not row["gate"]:
        return [*label, *[""] * 7, error]
    spread = f"{_number(row['p20_ms'])}..{_number(row['p80_ms'])}"
    rates = [_number(row[name]) for name in ("peak_mib", "gb_per_s", "tflop_per_s")]
    share = f"{row['roofline_share']:.1%}"
    return [*label, _number(row["p50_ms"]), spread, _number(row["wall_ms"]), *rates, share, error]


def _against(row: Row, others: Sequence[Row]) -> list[str]:
    if not row["gate"]:
        return ["", "", f"GATE FAILED: {row['error']}"]
    marks = ["host-bound"] if row["wall_ms"] > HOST_BOUND * row["p50_ms"] else []
    marks += ["noisy"] if row["p80_ms"] > NOISY * row["p20_ms"] else []
    timed = [other for other in others if other["gate"]]
    if row["provider"] != SUBJECT or not timed:
        return ["", "", " ".join(marks)]
    ratios = [min(o[name] for o in timed) / row[name] for name in ("p50_ms", "wall_ms")]
    marks = ["SLOWER", *marks] if min(ratios) < 1 else marks
    return [*(f"{ratio:.2f}x" for ratio in ratios), " ".join(marks)]


def _verdict(first: Row, second: Row, tolerance: float) -> str:
    """Slower or faster, where the two spreads do not overlap."""
    if second["p50_ms"] > first["p50_ms"] * (1 + tolerance) and second["p20_ms"] > first["p80_ms"]:
        return "SLOWER"
    if first["p50_ms"] > second["p50_ms"] * (1 + tolerance) and first["p20_ms"] > second["p80_ms"]:
        return "faster"
    return ""


def _differences(before: Sequence[Row], after: Sequence[Row]) -> list[str]:
    lines = []
    for name in ("device", "driver", "torch", "threads"):
        values = [sorted({str(row.get(name)) for row in rows}) for rows in (before, after)]
        if values[0] != values[1]:
            lines.append(f"note: {name} differs: {', '.join(values[0])} before, {', '.join(values[1])} after")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.jsonl", help="one result file, or two")
    parser.add_argument("--tolerance", type=float, default=0.05, help="relative change that counts (0.05)")
    options = parser.parse_args(arguments)
    if len(options.runs) > 2:
        parser.error(f"expected one or two result files, got {len(options.runs)}")
    try:
        runs = [read_rows(path) for path in options.runs]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(summarize(runs[0]) if len(runs) == 1 else compare(*runs, options.tolerance))


if __name__ == "__main__":
    main()
