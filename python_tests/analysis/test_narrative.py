import copy

import pytest

from stratcore.analysis import plain_answer, to_plain
from stratcore.analysis.narrative import caveats, format_interval, format_number, key_numbers


@pytest.fixture
def results(run):
    return copy.deepcopy(to_plain(run[0]))


def _estimate(corrected, low, high, p_value):
    ends = {"corrected": corrected, "low": low, "high": high}
    return {"value": corrected + 0.02, **ends, "floor": 0.02, "floor_high": 0.03, "p_value": p_value}


@pytest.mark.parametrize(("low", "p_value"), [(-0.01, 0.04), (0.001, 0.06)])
def test_no_evidence_when_the_interval_or_the_test_leaves_room_for_chance(results, low, p_value):
    results["agreement"]["overall"]["ari"] = _estimate(0.01, low, 0.03, p_value)
    assert plain_answer(results)[0].startswith(
        "There is no clear evidence that experts follow domains: ARI 0.01"
    )


@pytest.mark.parametrize(
    ("ari", "nmi", "word"),
    [(0.05, 0.6, "slightly"), (0.6, 0.05, "slightly"), (0.2, 0.6, "moderately"), (0.6, 0.6, "strongly")],
)
def test_degree_follows_the_smaller_score(results, ari, nmi, word):
    for name, value in (("ari", ari), ("nmi", nmi)):
        results["agreement"]["overall"][name] = _estimate(value, value - 0.02, value + 0.02, 0.001)
    assert plain_answer(results)[0].startswith(f"Experts follow domains {word}: ")


def test_length_confound_is_said(results):
    assert plain_answer(results)[1].startswith("Text length alone does not explain it")
    results["agreement"]["within_length"]["nmi"] = _estimate(0.03, 0.0, 0.05, 0.04)
    assert plain_answer(results)[1].startswith(
        "Text length may explain it: among texts of like length NMI is 0.03"
    )


@pytest.mark.parametrize(
    ("nmi", "words"), [(0.9, "better than the experts"), (0.01, "less well"), (0.39, "about as well")]
)
def test_best_clustering_is_compared(results, nmi, words):
    for baseline in results["agreement"]["baselines"]:
        baseline["nmi"] = nmi
    assert words in plain_answer(results)[2]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.01, 0.03, "better than"), (-0.03, -0.01, "worse than"), (-0.01, 0.02, "not separable from")],
)
def test_baseline_verdict_needs_an_interval_without_zero(results, low, high, words):
    results["reconstruction"]["baselines"][1]["difference"] = {"value": 0.01, "low": low, "high": high}
    assert f"{words} one TopK dictionary of equal active FLOPs" in plain_answer(results)[3]


def test_even_gate_is_named_as_reference(results):
    assert "(even gate: 20.0)" in plain_answer(results)[-1]


def test_no_domains_no_claim(results):
    results["agreement"] = None
    answer = plain_answer(results)
    assert answer[0] == "The rows carry no domains, so nothing is said of experts and domains."
    assert len(answer) == 3
    assert len(key_numbers(results)) == 6


def test_caveats_count_the_seeds(results):
    assert dict(caveats(results))["Seeds"].startswith("Trained once, from seed 0.")
    results["seeds"] = [0, 1, 2]
    assert dict(caveats(results))["Seeds"] == "Trained from 3 seeds (0, 1, 2)."


def test_words_for_numbers():
    assert format_number(None) == "n/a"
    assert format_interval({"value": 0.1, "low": 0.05, "high": None}) == "0.100 [0.050, n/a]"
