"""What the trials of `compare_positions` say: learning rates, means, paired ratios, claims, tables, figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from stratcore.analysis.paired_differences import paired_difference
from stratcore.models.sequence_transformer import POSITIONS
from stratcore.recipes.compare_positions import RIVALS, TASKS, TORUS, ComparePositionsRun, Setting
from stratcore.recipes.comparison_figures import curves, differences
from stratcore.recipes.trials import CaptionedFigure, Table, holm, seed_mean

LEVEL = 0.05
LEAST_LOSS = 1e-12  # smaller ones, 0 among them, are taken as this where a logarithm is
Choices = Mapping[tuple[str, str], Setting]
Rows = Sequence[dict[str, Any]]


def tuned(run: ComparePositionsRun, trials: Rows) -> dict[tuple[str, str], Setting]:
    """The setting of each task and arm with the least mean validation loss on the tuning seeds."""
    seeds = run.seeds[: run.tuning_seeds]

    def loss(task: str, arm: str, setting: Setting) -> float:
        own = [row["validation_loss"] for row in _of(trials, task, arm, setting) if row["seed"] in seeds]
        return float(np.mean(own))

    return {
        (task, arm): min(run.settings_of(task, arm), key=lambda setting: loss(task, arm, setting))
        for task in run.tasks
        for arm in run.arms_of(task)
    }


def _of(trials: Rows, task: str, arm: str, setting: Setting) -> list[dict[str, Any]]:
    key = {"task": task, "arm": arm, **asdict(setting)}
    return [row for row in trials if all(row[name] == value for name, value in key.items())]


def of_arm(
    run: ComparePositionsRun, trials: Rows, choices: Choices, task: str, arm: str
) -> list[dict[str, Any]]:
    """Trials of an arm with its chosen setting, in the order of the seeds."""
    by_seed = {row["seed"]: row for row in _of(trials, task, arm, choices[task, arm])}
    return [by_seed[seed] for seed in run.seeds]


def summarize(
    run: ComparePositionsRun, trials: Rows, choices: Choices, floors: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """A row a task and arm: losses with intervals, the floor, how much the loss still fell, size, time."""
    found: list[dict[str, Any]] = []
    for task, arm in choices:
        own = of_arm(run, trials, choices, task, arm)
        found.append(
            {
                "task": task,
                "arm": arm,
                "name": POSITIONS[arm],
                "setting": choices[task, arm].words(arm),
                **asdict(choices[task, arm]),
                "losses": {
                    part: seed_mean([row["losses"][part] for row in own]) for part in own[0]["losses"]
                },
                "floor": floors[task],
                "last_fall": _last_fall(own),
                "parameters": own[0]["parameters"],
                "position_parameters": own[0]["position_parameters"],
                "fit_seconds": float(np.mean([row["fit_seconds"] for row in own])),
            }
        )
    return found


def _last_fall(own: Rows) -> float | None:
    """Share by which the mean validation loss fell over the last fifth of the steps; None for a single evaluation."""
    curve = np.mean([[point["loss"] for point in row["curve"]] for row in own], axis=0)
    steps = [point["step"] for point in own[0]["curve"]]
    before = [index for index, step in enumerate(steps) if step <= 0.8 * steps[-1]]
    return float(1 - curve[-1] / curve[before[-1]]) if before else None


def compare(run: ComparePositionsRun, trials: Rows, choices: Choices) -> list[dict[str, Any]]:
    """The torus against each other arm of each task, paired by seed.

    `ratio`: geometric mean over seeds of its test loss over the other's, with its BCa interval; `log_ratio`: its
    logarithm with the p value of the sign-flip test; `p_holm`: that corrected for all pairs of the run.
    """
    found: list[dict[str, Any]] = []
    for task, arm in choices:
        if arm == TORUS:
            continue
        pairs = zip(
            of_arm(run, trials, choices, task, TORUS), of_arm(run, trials, choices, task, arm), strict=True
        )
        losses = [(own["losses"]["test"], other["losses"]["test"]) for own, other in pairs]
        logs = paired_difference([_log(own) - _log(other) for own, other in losses])
        found.append(
            {
                "task": task,
                "arm": arm,
                "log_ratio": asdict(logs),
                "ratio": {
                    key: None if value is None else math.exp(value)
                    for key, value in (("value", logs.value), ("low", logs.low), ("high", logs.high))
                },
                "difference": asdict(paired_difference([own - other for own, other in losses])),
            }
        )
    adjusted = holm([row["log_ratio"]["p_value"] for row in found])
    return [row | {"p_holm": p} for row, p in zip(found, adjusted, strict=True)]


def claims(run: ComparePositionsRun, summary: Rows, comparisons: Rows) -> list[dict[str, Any]]:
    """A row a task: whether the torus has a lower test loss than every rival.

    The best rival is the one of least mean test loss. 'Lower than all' needs every single p below the level, so the
    largest of them is the claim's p, without a correction for the rivals (an intersection-union test); Holm's holds
    over the tasks. `verdict`: 'yes' where the whole interval of the ratio lies below 1 - margin too.
    """
    found: list[dict[str, Any]] = []
    for task in run.tasks:
        losses = {row["arm"]: row["losses"]["test"].value for row in summary if row["task"] == task}
        rivals = [row for row in comparisons if row["task"] == task and row["arm"] in RIVALS]
        best = min(rivals, key=lambda row: losses[row["arm"]])
        above = [row for row in rivals if row["log_ratio"]["value"] >= 0]
        p = 1.0 if above else max(row["log_ratio"]["p_value"] for row in rivals)
        found.append(
            {
                "task": task,
                "best_rival": best["arm"],
                "torus_loss": losses[TORUS],
                "rival_loss": losses[best["arm"]],
                "ratio": best["ratio"],
                "p_value": p,
                "p_rival_lower": best["log_ratio"]["p_value"] if best["log_ratio"]["value"] > 0 else 1.0,
            }
        )
    for key in ("p_value", "p_rival_lower"):
        for row, p in zip(found, holm([row[key] for row in found]), strict=True):
            row[f"{key}_holm"] = p
    return [row | {"verdict": _verdict(row, run.margin)} for row in found]


def _verdict(row: Mapping[str, Any], margin: float) -> str:
    high = row["ratio"]["high"]
    if row["p_value_holm"] < LEVEL:
        return "yes" if high is not None and high <= 1 - margin else "lower, by less"
    return "higher" if row["p_rival_lower_holm"] < LEVEL else "not shown"


def tables(run: ComparePositionsRun, summary: Rows, comparisons: Rows, found: Rows) -> list[Table]:
    """Claims, then losses and ratios of each task."""
    return [_claims(run, found), *(_of_task(run, task, summary, comparisons) for task in run.tasks)]


def _claims(run: ComparePositionsRun, found: Rows) -> Table:
    return Table(
        title=f"Is the loss of the torus at least {run.margin:.0%} below that of the best rival?",
        head=["task", "torus", "best rival", "its loss", "ratio", "p", "p (Holm)", "verdict"],
        rows=[
            [
                TASKS[row["task"]],
                f"{row['torus_loss']:.4g}",
                POSITIONS[row["best_rival"]],
                f"{row['rival_loss']:.4g}",
                _interval(row["ratio"]),
                f"{row['p_value']:.4f}",
                f"{row['p_value_holm']:.4f}",
                row["verdict"],
            ]
            for row in found
        ],
        note=f"Test losses, means over {len(run.seeds)} paired seeds. Ratio: geometric mean with its BCa interval of "
        f"95 %. p: the largest of the exact sign-flip tests against each rival (RoPE, ALiBi, T5 bias, on two axes "
        f"also axial), 1 where one is below the torus; the least that {len(run.seeds)} seeds can give is "
        f"{2 / 2 ** len(run.seeds):.4f}. Holm: over the tasks.",
    )


def _of_task(run: ComparePositionsRun, task: str, summary: Rows, comparisons: Rows) -> Table:
    own = [row for row in summary if row["task"] == task]
    against = {row["arm"]: row for row in comparisons if row["task"] == task}
    parts = list(own[0]["losses"])
    floor = own[0]["floor"]
    known = "not known" if floor is None else f"{floor:.4g}"
    above = ["above floor"] if floor else []
    return Table(
        title=f"{TASKS[task].capitalize()}: test loss",
        head=["positions", *parts, *above, "torus over it", "p (Holm)", "last fall", "learning rate, setting",
              "parameters", "of positions", "fit, s"],
        rows=[
            [
                row["name"],
                *(_mean(row["losses"][part]) for part in parts),
                *(f"{row['losses']['test'].value - floor:.4g}" for _ in above),
                _interval(against[row["arm"]]["ratio"]) if row["arm"] in against else "",
                f"{against[row['arm']]['p_holm']:.4f}" if row["arm"] in against else "",
                "" if row["last_fall"] is None else f"{row['last_fall']:.1%}",
                row["setting"],
                f"{row['parameters']:,}",
                f"{row['position_parameters']:,}",
                f"{row['fit_seconds']:.1f}",
            ]
            for row in own
        ],
        note=f"{LOSSES[task]} Floor: {known}. Means over seeds with 95 % t intervals. Last fall: share by which "
        f"the mean validation loss fell over the last fifth of the {run.size_of(task).stage.steps:,} steps. "
        "Holm: over all pairs of the run.",
    )  # fmt: skip


def answer(run: ComparePositionsRun, found: Rows) -> list[str]:
    """A sentence a task."""
    words = {
        "yes": f"yes, by {run.margin:.0%} or more",
        "lower, by less": f"yes, but not by {run.margin:.0%}",
        "higher": "no, it is higher",
        "not shown": "not shown",
    }
    return [
        f"{TASKS[row['task']].capitalize()}: is the torus below the best rival ({POSITIONS[row['best_rival']]})? "
        f"{words[row['verdict']].capitalize()}: {row['torus_loss']:.4g} against {row['rival_loss']:.4g}, ratio "
        f"{_interval(row['ratio'])}."
        for row in found
    ]


def figures(
    run: ComparePositionsRun, trials: Rows, choices: Choices, comparisons: Rows
) -> dict[str, CaptionedFigure]:
    """Log ratios with their intervals, and a figure of validation curves a task."""
    lines = [(f"{TASKS[row['task']]}: {POSITIONS[row['arm']]}", row["log_ratio"]) for row in comparisons]
    drawn = {
        "ratios": differences(
            lines,
            title="Ratios of test losses",
            what="loss of the torus over that of the other encoding on the same task",
            unit="natural logarithms",
            seeds=len(run.seeds),
            reading=f"Left of 0 the torus is better; {math.log(1 - run.margin):.2f} is the margin that is asked for.",
        )
    }
    for task in run.tasks:
        by_arm = {
            POSITIONS[arm]: [
                [(point["step"], _log(point["loss"]) / math.log(10)) for point in row["curve"]]
                for row in of_arm(run, trials, choices, task, arm)
            ]
            for arm in run.arms_of(task)
        }
        drawn[f"curves_{task}"] = curves(
            by_arm,
            title=f"Validation loss in training: {TASKS[task]}",
            y_label="log10 of the validation loss",
            seeds=len(run.seeds),
            better="fall",
            note="Each arm with the settings that were chosen for it.",
        )
    return drawn


def _log(loss: float) -> float:
    return math.log(max(loss, LEAST_LOSS))


def _mean(mean: Any) -> str:
    return f"{mean.value:.4g}" if mean.low is None else f"{mean.value:.4g} [{mean.low:.4g}, {mean.high:.4g}]"


def _interval(ratio: Mapping[str, Any]) -> str:
    if ratio["low"] is None:
        return f"{ratio['value']:.3g}"
    return f"{ratio['value']:.3g} [{ratio['low']:.3g}, {ratio['high']:.3g}]"


_RING = (
    "Cross-entropy in nats; guessing costs the logarithm of the number of symbols. Test: rotated by a random number "
    "of sites; unrotated: cut where no label looks across."
)
LOSSES = {
    "ring_copy": f"{_RING} Training is rotated too.",
    "ring_copy_seam": f"{_RING} Training is not rotated: no arm has seen a label that looks across the cut.",
    "next_mark": f"{_RING} Training is rotated too.",
    "next_mark_seam": f"{_RING} Training is not rotated: no arm has seen a label that looks across the cut.",
    "advection_diffusion": "Squared error of one step, of fields with variance 1; rollout: over the true mean "
    "square, where the model is fed its own answers.",
    "day_week": "Squared error of the next value of series with variance 1.",
    "bytes": "Cross-entropy in nats a byte.",
}
CAVEATS = [
    ("Seam", "Where training avoids the seam, encodings of an open line have never seen what the test asks: their "
     "loss says that they do not know of the ring, not that they cannot learn it; for that, see where training "
     "crosses the seam."),
    ("Small losses", "Where the floor is 0 and several arms come close to it, a ratio says who came closer in these "
     "steps; look at the losses."),
    ("Tuning", "Every arm chooses among the same learning rates on validation draws of the first seeds, RoPE also "
     "its base, the torus what its slopes start from; nothing else was tuned. The buckets of T5 reach to "
     "the end of the sequence or axis."),
    ("Cut open", "The torus cut open is the same layer, with the same parameters, on a lattice twice as large: what "
     "it lacks is the way around alone."),
]  # fmt: skip
