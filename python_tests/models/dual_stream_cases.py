"""A small dual-stream model."""

from __future__ import annotations

from typing import Any

from stratcore.models import DualStreamViTOptions


def small(**changes: Any) -> DualStreamViTOptions:
    """Bidirectional, one dual and one cross block, 8 x 8 grey images, four classes."""
    values: dict[str, Any] = {
        "num_classes": 4, "image_size": 8, "channels": 1, "patch_size": 2, "embed_dim": 16, "stream_dim": 16,
        "num_heads": 2, "num_dual_blocks": 1, "num_cross_blocks": 1, "num_fused_blocks": 0, "fused_dim": 16,
        "output_dim": 8, "num_anchors": 8, "num_compartments": 2, "compartment_dim": 4, "dropout": 0.0,
        "tokenizer_width": 8,
    }  # fmt: skip
    return DualStreamViTOptions(**(values | changes))


FUSED = {"num_cross_blocks": 0, "num_fused_blocks": 1}
