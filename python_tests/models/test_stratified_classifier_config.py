"""Options of the classifier: what is refused, defaults, JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import DistilBertConfig

from python_tests.models.stratified_classifier_cases import CONFIGS
from stratcore.models import VARIANTS, StratifiedClassifier, StratifiedClassifierConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"varaint": "plain"}, "unknown option 'varaint'; did you mean 'variant'?"),
        ({"variant": "moe"}, "variant: expected one of plain, mlp, .*, got 'moe'"),
        (
            {"frozen_variant": "plain"},
            "frozen_variant: expected one of stratified_attention, .*, got 'plain'",
        ),
        ({"pooling": "max"}, "pooling: expected one of None, mean, cls, last, got 'max'"),
        ({"geometric_signs": "both"}, "geometric_signs: expected one of corrected, source, got 'both'"),
        ({"dropout": 1.0}, r"dropout: expected a share in \[0, 1\), got 1.0"),
        ({"variant": "mlp"}, "matched_parameters: expected a number with variant 'mlp'"),
        ({"matched_parameters": 100}, "matched_parameters: .* got 100 with 'stratified_moe'"),
        ({"variant": "plain", "block_options": {"top_k": 1}}, "block_options: variant 'plain' has none"),
        (
            {"auxiliary_weights": {"balanse": 1.0}},
            "has the losses .'balance', 'z', 'entropy', 'usage'., got 'balanse'",
        ),
        ({"auxiliary_weights": {"z": float("nan")}}, "'z': expected a finite number, got nan"),
        ({"encoder": {"vocab_size": 8}}, "encoder: expected a model_type known to transformers, got None"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        StratifiedClassifierConfig(**options)
    assert "\n" not in str(raised.value)


def test_a_classifier_needs_an_encoder() -> None:
    with pytest.raises(ValueError, match="encoder: expected the configuration of an encoder, got None"):
        StratifiedClassifier(StratifiedClassifierConfig())


def test_weights_of_the_losses() -> None:
    weights = {name: StratifiedClassifierConfig(**options(name)).weights for name in VARIANTS}
    assert weights["plain"] == weights["mlp"] == weights["frozen_random_router"] == {}
    assert weights["stratified_moe"] == {"balance": 0.01, "z": 0.001}
    assert weights["stratified_post_attention"] == {"entropy": -1e-4, "usage": 1e-4}
    assert weights["geometric_regularization"] == {"strata": 0.1, "curvature": 0.05, "manifold": 0.02}
    assert StratifiedClassifierConfig(auxiliary_weights={"z": 0.0, "usage": 2}).weights == {"usage": 2.0}
    assert StratifiedClassifierConfig(auxiliary_weights={}).weights == {}


def options(variant: str) -> dict[str, Any]:
    return {"variant": variant} | ({"matched_parameters": 8_000} if variant == "mlp" else {})


@pytest.mark.parametrize("variant", VARIANTS)
def test_json_gives_the_same_back(variant: str, tmp_path: Path) -> None:
    config = StratifiedClassifierConfig(
        CONFIGS["distilbert"](),
        num_strata=4,
        pooling="cls",
        id2label={0: "a", 1: "b", 2: "c"},
        **options(variant),
    )
    config.save_pretrained(tmp_path)
    loaded = StratifiedClassifierConfig.from_pretrained(tmp_path)
    assert isinstance(loaded.encoder, DistilBertConfig)
    read, written = loaded.to_dict(), config.to_dict()
    for values in (read, written, read["encoder"], written["encoder"]):
        for key in ("transformers_version", "_name_or_path", "dtype"):
            values.pop(key, None)
    assert read == written
    assert loaded.num_labels == 3 and loaded.hidden_size == 32 and loaded.num_hidden_layers == 2
