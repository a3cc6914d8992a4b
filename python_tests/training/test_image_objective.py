from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from python_tests.models.dual_stream_cases import FUSED, small
from stratcore.models import DualStreamViT
from stratcore.training import embedding_losses as losses
from stratcore.training.image_objective import (
    ImageObjectiveOptions,
    classification_loss,
    expert_loss,
    pair_loss,
    shape_terms,
)

ALL = ImageObjectiveOptions(
    info_nce=1.0, mastery=1.0, diversity=1.0, cv=1.0, cv_target=0.3, anchor_cv=1.0, cm=1.0, spread=1.0, usage=1.0
)  # fmt: skip
LABELS = torch.arange(12) % 4


def output(**changes: object):
    model = DualStreamViT(small(**changes))
    return model, model(torch.rand(12, 1, 8, 8))


def test_terms_of_weight_zero_are_not_computed() -> None:
    model, out = output()
    assert shape_terms(out, LABELS, model.anchors, ImageObjectiveOptions()) == {}
    found = shape_terms(out, LABELS, model.anchors, ALL)
    assert set(found) == {"diversity", "cv", "cv_value", "cm", "anchor_cv", "spread", "usage"}
    torch.testing.assert_close(found["spread"], losses.anchor_spread(model.anchors))
    lone_model, lone = output(readout="perceptron", channel="none")
    assert set(shape_terms(lone, LABELS, lone_model.anchors, ALL)) == {"diversity", "cv", "cv_value"}
    sum(value for name, value in found.items() if name != "cv_value").backward()
    assert model.anchors.grad.abs().sum() > 0


def test_the_cv_may_be_of_the_geometric_embedding_alone() -> None:
    model, out = output(**FUSED)
    alone = replace(ALL, cv_of="geometric")
    gradients = torch.autograd.grad(
        shape_terms(out, LABELS, None, alone)["cv"], [*model.fused_output.parameters()], allow_unused=True
    )
    assert all(gradient is None for gradient in gradients)
    assert ALL.cv_options.target == 0.3 and ALL.cv_options.num_simplices == 512
    source = replace(ALL, cv_source_sampling=True, cv_target=0.22).cv_options
    assert (source.num_simplices, source.pool, source.min_valid, source.target) == (64, 512, 5, 0.22)
    assert replace(ALL, cv_target=None, cv_dim=16).cv_options.target_of(128) == pytest.approx(
        0.2030, abs=2e-4
    )


def test_cayley_menger_rules_on_collapsed_simplices() -> None:
    """Tokens whose vertices fall together: 'validity' sees nothing, for it never does; ours do."""
    model, _ = output()
    channel = model.pairs[0].geometric.branch.channel
    with torch.no_grad():
        channel.template.mul_(0.01)
        channel.deform.weight.mul_(1e-3)
        channel.deform.bias.zero_()
    out = model(torch.rand(4, 1, 8, 8))
    values = {}
    for rule in ("validity", "barrier", "regularity"):
        term = shape_terms(out, LABELS[:4], None, ImageObjectiveOptions(cm=1.0, cm_rule=rule))["cm"]
        (gradient,) = torch.autograd.grad(term, channel.deform.weight, retain_graph=True)
        values[rule] = (float(term.detach()), bool(gradient.any()))
    assert values["validity"] == (0.0, False)
    assert values["barrier"][0] > 100 and values["barrier"][1] and values["regularity"][1]


def test_pairs() -> None:
    _, out = output()
    e, g, s = out.embeddings()
    for pairs, expected in (
        ("joint", losses.info_nce(e[:6], e[6:])),
        ("geometric", losses.info_nce(g[:6], g[6:])),
        ("cross", losses.cross_info_nce((g[:6], g[6:]), (s[:6], s[6:]))),
    ):
        found = pair_loss(out, replace(ALL, info_nce_pairs=pairs))
        torch.testing.assert_close(found.loss, expected.loss)
    one = pair_loss(out, replace(ALL, info_nce_symmetric=False)).loss
    torch.testing.assert_close(one, losses.info_nce(e[:6], e[6:], symmetric=False).loss)


def test_experts_learn_with_sigmoids_and_with_a_softmax() -> None:
    logits, targets = torch.randn(2, 5, 4), torch.eye(4)[[0, 1, 2, 3, 0]]
    out = output()[1]._replace(expert_logits=tuple(logits))
    entropy = torch.nn.functional.cross_entropy(logits[1], targets, label_smoothing=0.1)
    expected = losses.smoothed_bce(logits[0], targets, 0.1) + entropy
    torch.testing.assert_close(expert_loss(out, targets, ALL), expected)


def test_classification() -> None:
    logits, targets = torch.randn(5, 4), torch.eye(4)[[0, 1, 2, 3, 0]]
    bce = classification_loss(logits, targets, ALL)
    torch.testing.assert_close(bce, losses.smoothed_bce(logits, targets, 0.1))
    entropy = classification_loss(
        logits, targets, replace(ALL, classification="cross_entropy", smoothing=0.0)
    )
    torch.testing.assert_close(entropy, -(targets * logits.log_softmax(-1)).sum(1).mean())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classification": "mse"}, "objective.classification: expected one of bce, cross_entropy"),
        ({"info_nce_pairs": "x"}, "objective.info_nce_pairs: expected one of joint, geometric, cross"),
        ({"cm_rule": "x"}, "objective.cm_rule: expected one of barrier, regularity, validity"),
        ({"cv_of": "x"}, "objective.cv_of: expected one of both, geometric"),
        ({"spread": -1.0}, "objective.spread: expected a number >= 0, got -1.0"),
        ({"smoothing": 1.0}, r"objective.smoothing: expected a share in \[0, 1\), got 1.0"),
        ({"temperature": 0.0}, "objective.temperature, usage_temperature: expected numbers > 0"),
        ({"views": 3}, "objective.views: expected 1 or 2, got 3"),
        ({"views": 1}, "objective.info_nce: expected 0 with one view, got 1.0"),
        ({"cv_dim": 16}, "target and target_dim: expected one of them at most"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(ALL, **changes)
