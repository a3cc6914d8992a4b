"""Writes docs/stratification.md: the published tables beside a rerun, from the rows under bench/results.

python -m bench.document_stratification
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from bench import known_strata
from bench import published_stratification as published
from bench import stratification_words as words
from bench.document import prose, science_rows
from bench.markdown import command, digits, interval, table

CPU = Path("bench/results/cpu")
TARGET = Path("docs/stratification.md")
Results = dict[str, Any]
EMBEDDINGS = {
    "minilm_texts": "MiniLM, texts",
    "smollm2_texts": "SmolLM2, texts",
    "minilm_tokens": "MiniLM, tokens",
    "smollm2_tokens": "SmolLM2, tokens",
}
WORKFLOWS = {
    "smollm2_advanced": ("advanced", "SmolLM2-135M"),
    "minilm_notebook": ("notebook", "MiniLM"),
    "smollm2_notebook": ("notebook", "SmolLM2-135M"),
    "minilm_multi_domain": ("multi_domain", "MiniLM"),
    "smollm2_multi_domain": ("multi_domain", "SmolLM2-135M"),
}
TESTS = ("fiber bundle, spacings", "manifold, spacings", "fiber bundle, published procedure",
         "manifold, published procedure", "rule of the source documents")  # fmt: skip


def load(name: str) -> Results:
    """results.json of an analysis."""
    return json.loads((CPU / f"analysis/{name}.json").read_text(encoding="utf-8"))


def answers() -> str:
    """What the rest of the page says, in words."""
    null = [row for row in science_rows(CPU / "fiber_bundle.jsonl") if row["part"] == "nulls"]
    seeds = sorted({row["seed"] for row in null})
    most = max(sum(row["spacings_rise"] > 0 for row in null if row["seed"] == seed) for seed in seeds)
    source = [row["source_share"] for row in null]
    lines = [
        f"- On smooth manifolds our one-sided test rejects any point on at most {most} of 12, in each of "
        f"{len(seeds)} seeds; the rule of the source documents rejects {100 * min(source):.0f} to "
        f"{100 * max(source):.0f} % of their points."
    ]
    scales, agreement = [], []
    for name, label in EMBEDDINGS.items():
        result = load(name)
        rows = result["data"]["num_rows"]
        bundle, manifold = (test_of(result, TESTS[at]) for at in (0, 1))
        lines.append(
            f"- {label}: after Holm's correction {bundle['num_holm']:,} of {rows:,} points "
            f"({100 * bundle['num_holm'] / rows:.1f} %) are no point of a fiber bundle and {manifold['num_holm']:,} "
            f"({100 * manifold['num_holm'] / rows:.1f} %) no point of a manifold; after Benjamini-Hochberg's "
            f"{bundle['num_bh']:,} and {manifold['num_bh']:,}."
        )
        value = {
            row["estimator"]: row["value"] for row in result["dimensions"] if row["stratum"] == "all rows"
        }
        scales.append(max(value["MLE, k = 20"] / value["TwoNN"], value["TwoNN"] / value["MLE, k = 20"]))
        if result["strata"]["agreement"]:
            agreement.append(f"{label} {interval(result['strata']['agreement']['nmi'])}")
    lines += [
        "- So these embeddings are not one smooth manifold. Where a test does not reject, it proves none; and "
        "nothing here says that what is singular are borders of domains.",
        f"- No single number is the dimension: estimates from the first two and from twenty neighbors differ by "
        f"factors of {min(scales):.1f} to {max(scales):.1f}, and the calibrated estimate warns of curvature or "
        "uneven density.",
        f"- Strata go with domains far beyond chance and far from one to one: NMI, chance taken off, "
        f"{', '.join(agreement)}.",
        "- Local dimension goes with perplexity weakly, and less or not at all once text length is held fixed.",
    ]
    lines = ["\n".join(textwrap.wrap(line, 118, subsequent_indent="  ")) for line in lines]
    return "\n".join(lines) + "\n"


def test_of(result: Results, name: str) -> Results:
    """A test of an analysis by name."""
    return next(test for test in result["tests"] if test["name"] == name)


def known_spaces() -> list[str]:
    """Size, false rejections and power of the tests."""
    rows = science_rows(CPU / "fiber_bundle.jsonl")
    null = [row for row in rows if row["part"] == "nulls"]
    cells = []
    for case in dict.fromkeys(row["case"] for row in null):
        own = [row for row in null if row["case"] == case]
        counts = [", ".join(str(row[key]) for row in own) for key in ("spacings_rise", "spacings_change")]
        shares = [f"{100 * np.mean([row[key] for row in own]):.1f} %"
                  for key in ("reference_rise_share", "reference_change_share", "source_share")]  # fmt: skip
        cells.append([case, *counts, *shares])
    header = ["manifold", "fiber bundle, ours", "manifold, ours", "fiber bundle, published",
              "manifold, published", "rule of the source documents"]  # fmt: skip
    size = [row for row in rows if row["part"] == "size"]
    windows = sorted({tuple(row["window"]) for row in size})
    size_cells = []
    for case in dict.fromkeys(row["case"] for row in size):
        own = {
            (tuple(row["window"]), row["side"]): row["rejected_0.05"] for row in size if row["case"] == case
        }
        size_cells.append(
            [
                case,
                *(
                    "{:.3f} [{:.3f}, {:.3f}]".format(*own[w, side])
                    for w in windows
                    for side in ("rise", "change")
                ),
            ]
        )
    size_header = ["", *(f"{null}, neighbors {first} to {last}"
                         for first, last in windows for null in ("fiber bundle", "manifold"))]  # fmt: skip
    power = [row for row in rows if row["part"] == "power"]
    power_cells = []
    for case, side in dict.fromkeys((row["case"], row["side"]) for row in power):
        own = [row for row in power if (row["case"], row["side"]) == (case, side)]
        window = min(tuple(row["window"]) for row in own)
        own = [row for row in own if tuple(row["window"]) == window]
        means = [np.mean([row[key] for row in own], axis=0)
                 for key in ("points", "spacings_holm", "reference_lenient")]  # fmt: skip
        null_name = "fiber bundle" if side == "rise" else "manifold"
        power_cells.append([case, null_name, *("+".join(f"{part:.1f}" for part in mean) for mean in means)])
    return [
        prose(words.KNOWN),
        command(null[0]["command"]),
        table(header, cells),
        prose(words.SIZE.format(centers=size[0]["centers"])),
        table(size_header, size_cells),
        prose(words.POWER),
        table(["space", "null", "points", "ours, Holm", "published, lenient"], power_cells),
        timing(),
    ]


def timing() -> str:
    """Seconds of the largest table."""
    rows = [
        row for place in ("cpu", "h200") for row in science_rows(CPU.parent / place / "fiber_bundle.jsonl")
    ]
    parts = []
    for row in (row for row in rows if row["part"] == "time"):
        seconds = [row[key] for key in ("neighbors_seconds", "spacings_seconds", "reference_seconds")]
        machine = row["device"] if row["device_kind"] != "cpu" else f"{row['threads']} CPU threads"
        parts.append(
            f"{machine}: {sum(seconds):.1f} s (exact neighbors {seconds[0]:.1f}, our two tests {seconds[1]:.1f}, "
            f"the published procedure {seconds[2]:.1f})"
        )
    told = "; ".join(parts)
    runs = ", ".join(f"`{row['command']}`" for row in rows if row["part"] == "time")
    return prose(
        f"A table of {rows[-1]['case']} numbers, 200 neighbors of each row, all tests: {told}; the paper of the "
        f"published procedure (arXiv 2504.01002) reports 12 hours for one like it. {runs}."
    )


def real_embeddings() -> list[str]:
    """One column an analysis."""
    results = {name: load(name) for name in EMBEDDINGS}

    def line(label: str, cell: Any) -> list[str]:
        return [label, *(cell(result) for result in results.values())]

    def rejections(name: str) -> Any:
        def cell(result: Results) -> str:
            test = test_of(result, name)
            return (
                f"{test['num_holm']:,} / {test['num_bh']:,}"
                if "spacings" in name
                else f"{test['num_rejected']:,}"
            )

        return cell

    def dimension(name: str) -> Any:
        def cell(result: Results) -> str:
            rows = [r for r in result["dimensions"] if (r["stratum"], r["estimator"]) == ("all rows", name)]
            return interval(rows[0]) if rows else "none"

        return cell

    cells = [line("rows x features", lambda r: f"{r['data']['num_rows']:,} x {r['data']['num_features']}")]
    cells += [line(name, rejections(name)) for name in TESTS]
    names = ("PCA, 75 % of variance", "participation ratio", "TwoNN", "MLE, k = 20", "MLE, calibrated")
    cells += [line(f"dimension: {name}", dimension(name)) for name in names]
    cells += [
        line("strata", lambda r: f"{r['strata']['num_strata']} of at most {most_tried(r)}"),
        line("silhouette", lambda r: digits(r["strata"]["silhouette"])),
        line("stability (ARI)", lambda r: digits(r["strata"]["stability"])),
        line("minutes", lambda r: f"{sum(r['seconds'].values()) / 60:.1f}"),
    ]
    commands = [f"- {label}: `{results[name]['command']}`" for name, label in EMBEDDINGS.items()]
    return [prose(words.REAL), table(["", *EMBEDDINGS.values()], cells), "\n".join(commands) + "\n"]


def most_tried(result: Results) -> int:
    """The largest number of strata that was tried."""
    return max(choice["num_strata"] for choice in result["strata"]["choice"])


def beside_workflows() -> list[str]:
    """The three workflows of the first source document and ours of the same name."""
    cells = []
    for workflow, run in published.RUNS.items():
        kept = "" if run.variance_kept is None else f"{100 * run.variance_kept:.1f} %"
        strata = "" if run.stratum_dimensions is None else ", ".join(map(str, run.stratum_dimensions))
        cells.append(
            [f"`{workflow}`, published", run.model, run.rows, kept, f"{100 * run.rejected:.1f} %", "not given",
             run.dimension or "", run.silhouette, strata]
        )  # fmt: skip
        for name, (own, model) in WORKFLOWS.items():
            if own == workflow:
                cells.append(rerun_cells(workflow, model, load(name)))
    header = ["workflow", "model", "rows", "variance kept", "rejected, source rule", "rejected, ours (Holm)",
              "dimension", "silhouette", "stratum dimensions (PCA, 75 %)"]  # fmt: skip
    places = "; ".join(f"`{name}`: {run.place}" for name, run in published.RUNS.items())
    reruns = "\n".join(f"- `{load(name)['command']}`" for name in WORKFLOWS) + "\n"
    return [
        prose(words.BESIDE),
        table(header, cells),
        prose(f"Published: first source document, {places}."),
        reruns,
    ]


def rerun_cells(workflow: str, model: str, result: Results) -> list[Any]:
    """A line of the table of workflows."""
    rows = result["data"]["num_rows"]
    kept = result["data"]["variance_kept"]
    pca = {row["stratum"]: row["value"] for row in result["dimensions"]
           if row["estimator"] == "PCA, 75 % of variance"}  # fmt: skip
    two_nn = next(row for row in result["dimensions"]
                  if (row["stratum"], row["estimator"]) == ("all rows", "TwoNN"))  # fmt: skip
    return [
        f"`{workflow}`, rerun", model, rows, "" if kept is None else f"{100 * kept:.1f} %",
        f"{100 * test_of(result, TESTS[4])['num_rejected'] / rows:.1f} %",
        f"{100 * test_of(result, TESTS[0])['num_holm'] / rows:.1f} %",
        f"TwoNN {digits(two_nn['value'])}, PCA {pca['all rows']:.0f}", digits(result["strata"]["silhouette"]),
        ", ".join(f"{value:.0f}" for stratum, value in pca.items() if stratum != "all rows"),
    ]  # fmt: skip


def beside_tables() -> list[str]:
    """The paper's two tables, and ours of the trained mixture."""
    header = ["stratum", *published.DIMENSIONS]
    first = [[at, *values] for at, values in enumerate(zip(*published.DIMENSIONS.values(), strict=True))]
    second = [
        [at, *(f"{value:.2f}" for value in values)]
        for at, values in enumerate(zip(*published.SPARSITIES.values(), strict=True))
    ]
    experts = load("minilm_mixture")["experts"]
    ours = [[row["stratum"], row["num_rows"], f"{row['weighted_sparsity']:.2f}"]
            for key in ("sparsity_by_domain", "sparsity_by_stratum") for row in experts[key]]  # fmt: skip
    told = words.EXPERTS.format(
        held_out=experts["num_held_out"],
        nmi=interval(experts["agreement_with_domains"]["nmi"]),
        within=interval(experts["agreement_within_length"]["nmi"]),
        sparsity=experts["mean_sparsity"],
        uniform=published.UNIFORM_GATE,
        entropy=experts["gate"]["entropy_per_sample"],
        mean_entropy=experts["gate"]["entropy_of_mean"],
    )
    return [
        prose(words.TABLE_1.format(paper=published.PAPER)),
        table(header, first),
        prose(words.TABLE_2.format(paper=published.PAPER, uniform=published.UNIFORM_GATE)),
        table(header, second),
        prose(told),
        command(load("minilm_mixture")["command"]),
        table(["domain or stratum", "held-out rows", "weighted sparsity"], ours),
    ]


def perplexity() -> list[str]:
    """What perplexity goes with, at any and at equal text length."""
    results = {label: load(name)["perplexity"] for name, label in
               (("minilm_texts", "MiniLM"), ("smollm2_texts", "SmolLM2-135M"),
                ("minilm_mixture", "MiniLM, 64 components"))}  # fmt: skip

    def explained(key: str) -> list[str]:
        return [
            f"{interval(found[key]['explained'])}; {interval(found[key]['within_control'])}"
            if found.get(key) else "not run"
            for found in results.values()
        ]  # fmt: skip

    local = [
        f"{interval(found['local_dimension'])}; {interval(found['local_dimension_given_length'])}"
        for found in results.values()
    ]
    cells = [
        ["explained by domain", *explained("by_domain")],
        ["explained by stratum", *explained("by_stratum")],
        ["explained by expert", *explained("by_expert")],
        ["rank correlation with local dimension", *local],
    ]
    return [prose(words.PERPLEXITY), table(["all texts; at equal length", *results], cells)]


def page() -> str:
    """The whole page."""
    sections = (known_spaces, real_embeddings, beside_workflows, beside_tables, perplexity,
                known_strata.strata_methods, known_strata.dimension_errors, known_strata.single_dictionaries,
                known_strata.transfer, known_strata.search)  # fmt: skip
    return "\n".join([prose(words.HEAD), answers(), *(part for section in sections for part in section())])


def main() -> int:
    """Entry point."""
    TARGET.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
