"""Results of an analysis as plain values, made up so that every sentence has a number of its own."""

from __future__ import annotations

from typing import Any


def estimate(value: float, low: float, high: float, floor_high: float = 0.05) -> dict[str, float]:
    return {
        "value": value,
        "corrected": value,
        "low": low,
        "high": high,
        "floor": 0.01,
        "floor_high": floor_high,
        "p_value": 0.01,
    }


def neighborhood_test(name: str, procedure: str, null: str, rejected: int) -> dict[str, Any]:
    ours = procedure == "spacings"
    return {
        "name": name,
        "procedure": procedure,
        "null": null,
        "window": [10, 128],
        "level": 0.05,
        "num_tested": 100,
        "num_refused": 5,
        "num_rejected": rejected,
        "num_below_level": 2 * rejected if ours else None,
        "num_holm": rejected if ours else None,
        "num_bh": rejected + 1 if ours else None,
        "smallest_p": 1e-7 if ours else None,
        "seconds": 0.5,
        "per_stratum": [
            {
                "stratum": name,
                "num_tested": 50,
                "num_rejected": rejected // 2,
                "num_below_level": None,
                "num_holm": None,
                "num_bh": None,
            }
            for name in ("S0", "S1")
        ],
    }


def dimension(
    stratum: str, estimator: str, value: float | None, warning: str | None = None
) -> dict[str, Any]:
    low, high = (None, None) if value is None else (value - 1, value + 1)
    return {
        "stratum": stratum,
        "num_rows": 50,
        "estimator": estimator,
        "value": value,
        "corrected": value,
        "low": low,
        "high": high,
        "warning": warning,
    }


AGREEMENT = {"ari": estimate(0.3, 0.2, 0.4), "nmi": estimate(0.5, 0.45, 0.55), "num_rows": 105}
RESULTS: dict[str, Any] = {
    "schema_version": 2,
    "recipe": "notebook",
    "command": "python -m stratcore.analyze rows.npy",
    "environment": {"torch": "2.13"},
    "configuration": {"seed": 0, "data": {"source": "rows.npy"}},
    "seeds": [0],
    "data": {
        "name": "rows.npy",
        "kind": "text embeddings",
        "num_rows": 105,
        "num_features": 40,
        "num_analyzed_features": 16,
        "variance_kept": 0.8,
        "num_duplicates": 3,
        "domains": [
            {"name": "law", "num_rows": 60, "mean_tokens": 20.0},
            {"name": "film", "num_rows": 45, "mean_tokens": None},
        ],
        "notes": ["Half of the rows were drawn."],
    },
    "tests": [
        neighborhood_test("fiber bundle, spacings", "spacings", "fiber bundle", 2),
        neighborhood_test("manifold, spacings", "spacings", "manifold", 4),
        neighborhood_test("rule of the source documents", "source", "fiber bundle", 90),
    ],
    "singular_points": [
        {
            "row": 7,
            "name": "row <7>",
            "stratum": "S0",
            "p_value": 1e-7,
            "p_holm": 1e-5,
            "rank": 40,
            "radius": 0.25,
            "dimension_inside": 2.5,
            "dimension_outside": 8.5,
        }
    ],
    "dimensions": [
        dimension("all rows", "PCA, 75 % of variance", 25.0),
        dimension("all rows", "MLE, calibrated", 12.0, "a boundary"),
        dimension("S0", "PCA, 75 % of variance", 20.0),
        dimension("S0", "MLE, calibrated", 6.0),
        dimension("S1", "PCA, 75 % of variance", 31.0),
        dimension("S1", "MLE, calibrated", 15.0),
    ],
    "strata": {
        "method": "mixture of ppca",
        "num_strata": 2,
        "criterion": "held-out likelihood, nats a row",
        "answer": "2 strata: the held-out rows are likeliest.",
        "choice": [
            {"num_strata": 1, "value": -3.0, "low": -3.1, "high": -2.9},
            {"num_strata": 2, "value": -2.0, "low": -2.1, "high": -1.9},
        ],
        "silhouette": 0.2,
        "davies_bouldin": 1.5,
        "calinski_harabasz": 30.0,
        "stability": 0.8,
        "stability_low": 0.7,
        "stability_high": 0.9,
        "domains": ["film", "law"],
        "counts": [[30, 15], [20, 40]],
        "strata": ["S0", "S1"],
        "agreement": AGREEMENT,
        "within_length": None,
    },
    "geometry": {"mean_cosine": {"value": 0.1}},
    "geometry_words": ["mean cosine: 0.1, where random rows have 0."],
    "experts": None,
    "perplexity": {
        "source": "perplexity.npy",
        "num_rows": 100,
        "median": 80.0,
        "by_domain": {
            "explained": estimate(0.2, 0.15, 0.25),
            "within_control": estimate(0.1, 0.05, 0.15),
            "groups": [{"group": "law", "num_rows": 60, "median": 50.0, "low": 45.0, "high": 55.0}],
        },
        "by_stratum": None,
        "by_expert": None,
        "local_dimension": estimate(0.4, 0.3, 0.5),
        "local_dimension_given_length": estimate(0.15, 0.05, 0.25),
    },
    "seconds": {"tests": 1.0, "dimensions": 2.0},
}
