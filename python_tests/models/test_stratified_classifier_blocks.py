"""Blocks of the classifier: sizes, options, and a control of equal size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from python_tests.models.stratified_classifier_cases import CONFIGS, ROUTED, classifier
from stratcore.models import ResidualMLP, StratifiedClassifierConfig, block_parameters
from stratcore.models.stratified_classifier_blocks import build_block, router_parameters

# Counted by hand at D = 768.
SIZES_768 = {
    "stratified_attention": 3 * 3 * (768 * 768 + 768) + 768 * 768 + 2 * 768 + 768 * 384 + 384 + 3 * 384 + 3,
    "token_routing": 3 * 2 * (768 * 768 + 768) + 768 * 768 + 2 * 768 + 768 * 384 + 384 + 3 * 384 + 3,
    "stratified_moe": 4 * (2 * 768 * 64 + 64 + 768) + 2 * 768 + 768 * 384 + 384 + 3 * 384 + 3 + 4 * 768 + 12,
    "stratified_post_attention": 3 * 2 * (768 * 768 + 768) + 768 * 768 + 2 * 768 + 3 * 768 + 3,
}


def config(encoder: Any = None, **options: Any) -> StratifiedClassifierConfig:
    return StratifiedClassifierConfig(encoder or CONFIGS["distilbert"](), **options)


@pytest.mark.parametrize("variant", SIZES_768)
def test_sizes_at_the_width_of_distilbert(variant: str) -> None:
    assert block_parameters(config(hf.DistilBertConfig(), variant=variant)) == SIZES_768[variant]


def test_plain_has_no_block() -> None:
    for variant in ("plain", "geometric_regularization"):
        assert build_block(config(variant=variant)) is None and block_parameters(config(variant=variant)) == 0


@pytest.mark.parametrize("variant", ROUTED)
@pytest.mark.parametrize(
    "encoder", [hf.DistilBertConfig(), hf.BertConfig(hidden_size=384, num_hidden_layers=6), None]
)
def test_the_mlp_matches_within_one_percent(variant: str, encoder: Any) -> None:
    wanted = block_parameters(config(encoder, variant=variant))
    got = block_parameters(config(encoder, variant="mlp", matched_parameters=wanted))
    assert abs(got - wanted) <= 0.01 * wanted


def test_a_size_that_no_mlp_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"within 1 % of, got 1000 \(nearest: 974\)"):
        ResidualMLP.matched(32, 1000)
    with pytest.raises(ValueError, match="matched_parameters: "):
        ResidualMLP.matched(32, 3)


def test_options_reach_the_block() -> None:
    block = build_block(
        config(
            variant="stratified_attention",
            num_strata=2,
            block_options={"projections": "shared", "router": {"mode": "top_k", "top_k": 2}},
        )
    )
    assert block.options.num_heads == 4 and block.options.projections == "shared"
    assert block.options.router.num_strata == 2 and block.options.router.top_k == 2
    moe = build_block(config(block_options={"num_experts": 8, "capacity_factor": 1.25, "top_k": 1}))
    assert (moe.options.num_experts, moe.options.capacity_factor, moe.options.num_strata) == (8, 1.25, 3)
    post = build_block(config(variant="stratified_post_attention", block_options={"scale": 0.01, "top_k": 1}))
    assert post.options.scale == 0.01 and post.options.router.top_k == 1


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        (
            "stratified_moe",
            {"experts": 8},
            "block_options: stratified_moe has the options .*'num_experts'.*, got 'experts'",
        ),
        (
            "stratified_moe",
            {"router": {"mode": "top_k"}},
            "stratified_moe: router has the options .., got 'mode'",
        ),
        (
            "token_routing",
            {"router": {"topk": 2}},
            "token_routing: router has the options .*'top_k'.*, got 'topk'",
        ),
        ("token_routing", {"dim": 8}, "got 'dim'"),
        (
            "stratified_post_attention",
            {"route_on": "input"},
            "has the options .'top_k', 'hidden_dim', 'scale'., got 'route_on'",
        ),
        ("stratified_attention", {"num_heads": 5}, "num_heads: expected a divisor of dim = 32, got 5"),
    ],
)
def test_options_that_a_block_does_not_know(variant: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_block(config(variant=variant, block_options=options))


def test_router_parameters() -> None:
    names = {}
    for variant in ("stratified_moe", "token_routing"):
        block = classifier(variant=variant).block
        ids = {id(p) for p in router_parameters(block)}
        names[variant] = {name.split(".")[0] for name, p in block.named_parameters() if id(p) in ids}
    assert names == {"stratified_moe": {"strata", "gate", "affinity"}, "token_routing": {"router"}}


def test_the_mlp_leaves_pads_alone() -> None:
    block = ResidualMLP(8, 5)
    torch.nn.init.normal_(block.output.weight)
    hidden = torch.randn(2, 3, 8)
    hidden[1, 2] = float("nan")
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    output = block(hidden, mask)
    assert output.hidden[1, 2].isnan().all() and output.hidden[:, :2].isfinite().all()
    assert not torch.equal(output.hidden[0], hidden[0])
