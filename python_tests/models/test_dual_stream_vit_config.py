from __future__ import annotations

import pytest

from python_tests.models.dual_stream_cases import FUSED, small
from stratcore.models import ARCHITECTURES


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 9}, "image_size: expected a multiple of patch_size = 2, got 9"),
        (
            {"image_size": 9, "patch_size": 3, "tokenizer": "convolution"},
            "patch_size: expected a power of 2 for convolutions, got 3",
        ),
        ({"tokenizer": "conv"}, "tokenizer: expected one of patch, convolution, got 'conv'"),
        ({"channel": "x"}, "channel: expected one of simplex, perceptron, none"),
        ({"readout": "x"}, "readout: expected one of constellation, perceptron"),
        ({"embedding_norm": "x"}, "embedding_norm: expected one of batch, layer, got 'x'"),
        ({"pooling": "cls"}, "pooling: expected one of mean, attention, got 'cls'"),
        ({"separation_sign": "x"}, "separation_sign: expected one of repel, reference"),
        ({"volume_feature": "x"}, "volume_feature: expected one of log_volume, squared_volume"),
        ({"num_classes": 1}, "num_classes: expected a number >= 2, got 1"),
        ({"num_dual_blocks": 0}, "num_dual_blocks: expected a number >= 1, got 0"),
        ({"drop_path": 1.0}, r"drop_path: expected a probability in \[0, 1\), got 1.0"),
        ({"num_heads": 3}, r"num_heads: expected a divisor of \[16\], got 3"),
        ({"num_fused_blocks": 1}, "num_cross_blocks: expected 0 beside num_fused_blocks = 1, got 1"),
        ({"num_anchors": 9}, "num_anchors: expected a multiple of num_compartments = 2, got 9"),
        ({"separation": 0.1, "readout": "perceptron"}, "separation: expected 0 without anchors, got 0.1"),
        (
            {**FUSED, "geometric_output": False, "geometric_classifier": True},
            "expected a geometric embedding, got none",
        ),
        ({**FUSED, "decouple": True}, "decouple: expected a model without fused blocks"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(**changes)


def test_architectures_of_the_source_documents() -> None:
    assert list(ARCHITECTURES) == ["v1", "v3", "v5", "v5_bidir", "v6"]
    for name, options in ARCHITECTURES.items():
        assert options.volume_feature == "squared_volume" and options.separation_sign == "reference"
        assert options.embedding_norm == "layer" and not options.standardize
        assert options.separation == (0.0 if name == "v1" else 0.1)
        assert options.bidirectional == (name in ("v5_bidir", "v6"))
    assert ARCHITECTURES["v6"].num_tokens == 64 and small().num_tokens == 16
