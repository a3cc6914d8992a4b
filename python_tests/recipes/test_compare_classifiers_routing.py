from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stratcore.recipes.compare_classifiers_routing import RouteLog


def output(probabilities: torch.Tensor, sequence: torch.Tensor) -> SimpleNamespace:
    tokens = SimpleNamespace(probabilities=probabilities, sequence=sequence)
    return SimpleNamespace(routing={"strata": None}, routed_tokens=lambda: tokens)


def test_routes_that_follow_domains() -> None:
    domain, label = np.arange(60) % 3, np.arange(60) // 3 % 2
    log = RouteLog(60)
    for numbers in (np.arange(40), np.arange(40, 60)):
        sequence = torch.arange(len(numbers)).repeat_interleave(2)  # two tokens a row
        stratum = torch.from_numpy(domain[numbers])[sequence]
        log.add(numbers, None, output(0.7 * torch.nn.functional.one_hot(stratum, 3) + 0.1, sequence))
    found = log.statistics(domain, label)
    assert found is not None and found["nmi_domain"] == pytest.approx(1.0) and found["nmi_domain_floor"] < 0.2
    assert found["nmi_label"] == pytest.approx(0.0, abs=1e-9) and found["load_variation"] == pytest.approx(
        0.0
    )
    p = np.array([0.8, 0.1, 0.1])
    assert found["entropy"] == pytest.approx(-(p * np.log(p)).sum() / np.log(3), rel=1e-6)


def test_a_soft_router_that_leans_by_a_hair_is_even() -> None:
    log = RouteLog(8)
    log.add(np.arange(8), None, output(torch.tensor([[0.51, 0.49]] * 8), torch.arange(8)))
    found = log.statistics(np.arange(8) % 2, np.arange(8) % 2)
    assert found is not None and found["load_variation"] == pytest.approx(0.02, rel=1e-5)
    assert found["load_variation_of_choices"] == 1.0


def test_a_router_that_uses_one_stratum() -> None:
    log = RouteLog(8)
    log.add(np.arange(8), None, output(torch.tensor([[1.0, 0.0]] * 8), torch.arange(8)))
    found = log.statistics(np.arange(8) % 2, np.arange(8) % 2)
    assert found == {
        "nmi_domain": 0.0, "nmi_domain_floor": 0.0, "nmi_label": 0.0, "nmi_label_floor": 0.0,
        "load_variation": 1.0, "load_variation_of_choices": 1.0, "entropy": pytest.approx(0.0, abs=1e-12),
    }  # fmt: skip


def test_models_without_a_router_have_none() -> None:
    log = RouteLog(4)
    log.add(np.arange(4), None, SimpleNamespace(routing={}))
    assert log.statistics(np.zeros(4), np.zeros(4)) is None
