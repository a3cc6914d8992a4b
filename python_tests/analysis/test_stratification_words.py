"""The words of an analysis follow its numbers."""

from __future__ import annotations

import copy

import pytest

from python_tests.analysis.small_results import RESULTS
from stratcore.analysis.stratification_words import analysis_answer, analysis_caveats, analysis_numbers


@pytest.fixture
def results():
    return copy.deepcopy(RESULTS)


def test_the_answer_leads_with_singular_points(results):
    answer = analysis_answer(results)
    assert answer[0] == (
        "There are singular points: of 100 points, at 2 the dimension rises with the radius (fiber bundle rejected; "
        "family-wise error 0.05) and at 4 it changes at all (manifold rejected). The rule of the source documents "
        "rejects 90.0\u00a0% of the same points; on smooth manifolds it rejects half of the points at least, mostly "
        "all."
    )
    assert answer[1].startswith(
        "The rows have about 12.0 dimensions (MLE, calibrated, 95 % interval 11.0 to 13.0; a"
    )
    assert "from 6.0 (S0) to 15.0 (S1), with intervals apart." in answer[1]
    assert answer[2] == (
        "2 strata are chosen by held-out likelihood, nats a row (mixture of ppca); another start or sample gives "
        "the same ones with ARI 0.80 [0.700, 0.900]. The likelihood is that of Gaussians: rows of heavy tails can "
        "read as a second stratum, a wide one about the center of a narrow one."
    )
    assert answer[3].startswith("Strata and domains agree beyond chance: NMI 0.50 [0.45, 0.55]")
    assert "domains 20.0\u00a0% [15.0\u00a0%, 25.0\u00a0%]" in answer[4]
    assert (
        "rank correlation with local dimension at equal length is 0.15 [0.05, 0.25] (p = 0.01)" in answer[4]
    )
    assert len(answer) == 5


def test_no_rejection_is_no_evidence(results):
    for test in results["tests"]:
        test["num_holm"] = 0 if test["num_holm"] is not None else None
    assert analysis_answer(results)[0].startswith(
        "There is no evidence of singular points: of 100 points, at 0 the"
    )
    results["tests"] = []
    assert analysis_answer(results)[0].startswith("The rows have about 12.0 dimensions")
    assert dict(analysis_caveats(results))["Scale"] == "No test was asked for."


def test_overlap_one_stratum_and_chance_are_said(results):
    for row in results["dimensions"]:
        row["high"] = row["value"] + 20
    assert "with intervals that overlap." in analysis_answer(results)[1]
    results["strata"] |= {"num_strata": 1, "stability": None}
    results["strata"]["agreement"]["nmi"] |= {"low": 0.0}
    answer = analysis_answer(results)
    assert answer[2].startswith("One stratum describes the rows as well as more do (mixture of ppca")
    assert answer[3].startswith("Strata and domains do not agree beyond chance")
    results["strata"] |= {"criterion": None, "num_strata": 5}
    assert analysis_answer(results)[2] == "5 strata were asked for (mixture of ppca)."


def test_numbers_and_caveats(results):
    tiles = {name: (value, after) for name, value, after in analysis_numbers(results)}
    assert tiles["Rejected: fiber bundle, spacings"] == (
        "2.0\u00a0%",
        "of 100 points; 3 by Benjamini-Hochberg",
    )
    assert tiles["Rejected: rule of the source documents"] == ("90.0\u00a0%", "of 100 points")
    assert tiles["Dimension, MLE, calibrated"] == ("12.0", "95 % interval 11.0 to 13.0; a boundary")
    assert tiles["Strata"] == ("2", "silhouette 0.200; stability 0.800")
    caveats = analysis_caveats(results)
    assert [word for word, _ in caveats] == ["Size", "Scale", "Dimension", "Strata", "Perplexity", "Rows"]
    assert caveats[-1][1] == "Half of the rows were drawn."
