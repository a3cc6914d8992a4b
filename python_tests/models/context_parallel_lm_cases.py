"""Models whose sequence is cut across ranks, and what one rank finds on each of them against the whole."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from python_tests.huggingface.hosts import host
from stratcore.layers import SequenceShards, ToroidalBranchOptions
from stratcore.models import ToroidalLM, ToroidalLMOptions
from stratcore.models.context_parallel_lm import context_parallel_logits, context_parallel_nll
from stratcore.training.tasks import next_token_loss

LENGTH = 37
LAMBDA = (0.05, 0.2, 0.6, 1.5)
TORUS: dict[str, dict[str, Any]] = {
    "gated": {"lambda_distance": LAMBDA},
    "open": {"gate": "open", "lambda_distance": LAMBDA},
    "coupled": {"depth": 2, "depth_attention": "coupled", "lambda_distance": 0.1},
    "factored": {"gate": "open", "depth": 4, "lambda_distance": 0.1},
    "adaptive": {"adaptive_depths": (1, 2), "lambda_distance": 0.1},
    "lossy": {"gate": "open", "lambda_distance": 2.0, "eps": 1e-6},
}
CASES = [
    *((name, None) for name in ("llama", "gpt2", "phi", "gpt_neox", "qwen2")),
    *(("llama", form) for form in TORUS),
]


def model_of(name: str, form: str | None) -> nn.Module:
    """A host, or one whose first and last layer are toroidal, with its gates open by half."""
    if form is None:
        return host(name)
    model = ToroidalLM(
        host(name), ToroidalLMOptions(layers=(0, 2), torus=ToroidalBranchOptions(**TORUS[form]))
    )
    for branch in model.branches.values():
        if branch.gate is not None:
            branch.gate.data.fill_(0.5)
    return model.eval()


def token_ids(length: int = LENGTH) -> torch.Tensor:
    """[2, length]."""
    return torch.randint(3, 64, (2, length), generator=torch.Generator().manual_seed(4))


def compare(name: str, form: str | None, device: str, method: str) -> dict[str, float]:
    """Largest difference of this rank's logits to those of the whole, over the largest; and of the losses."""
    model, ids = model_of(name, form).to(device), token_ids().to(device)
    shards = SequenceShards(length=LENGTH, method=method)
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        expected, count = next_token_loss(model, ids)
        found = context_parallel_logits(model, ids, shards)
        after = model(input_ids=ids, use_cache=False).logits
    own = whole[:, shards.own.start : shards.own.stop]
    total, scored = context_parallel_nll(model, ids, shards)
    return {
        "logits": float((found - own).abs().max() / whole.abs().max()),
        "nll": abs(total / float(expected) - 1),
        "scored": scored - count,
        "left_as_it_was": float(torch.equal(after, whole)),
    }


def main() -> None:
    """One rank under torchrun."""
    folder, device = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(seconds=60))
    found = {
        f"{name} {form} {method}": compare(name, form, device, method)
        for name, form in CASES
        for method in ("ring", "all_gather")
    }
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.all_reduce(torch.zeros(1, device=device))  # nobody leaves while others still listen
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
