"""Export to ONNX, as docs/classifiers.md shows it; needs onnx, onnxscript and onnxruntime."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from python_tests.models.stratified_classifier_cases import batch, classifier, moved
from stratcore.models import VARIANTS, StratifiedClassifier

pytestmark = [
    pytest.mark.usefixtures("single_thread"),
    pytest.mark.filterwarnings("ignore"),  # the exporter's own, many
]
CAPACITY = {"block_options": {"capacity_factor": 0.5}}
HARD = {"block_options": {"capacity_factor": 0.5, "router": {"mode": "straight_through"}}}
ALL_CHOSEN = {"block_options": {"num_experts": 5, "top_k": 5}}  # in eager mode these are sorted
QUICK = "stratified_moe"
CASES = [
    *((variant, {}) for variant in VARIANTS),
    ("stratified_moe", CAPACITY),
    ("stratified_moe", ALL_CHOSEN),
    ("token_routing", HARD),
]


class Logits(nn.Module):
    def __init__(self, model: StratifiedClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def cases() -> list[Any]:
    """All but the first mixture are slow."""
    return [
        pytest.param(*case, marks=() if case == (QUICK, {}) else pytest.mark.slow, id=f"{case[0]}-{number}")
        for number, case in enumerate(CASES)
    ]


@pytest.mark.parametrize(("variant", "options"), cases())
def test_onnx_gives_the_same_logits_for_any_batch_and_length(variant: str, options: dict[str, Any]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = Logits(moved(classifier("distilbert", variant, **options)).eval())
    inputs = batch()
    sizes = {0: torch.export.Dim("rows", min=2, max=64), 1: torch.export.Dim("tokens", min=2, max=128)}
    program = torch.onnx.export(
        model,
        (inputs["input_ids"], inputs["attention_mask"]),
        dynamo=True,
        dynamic_shapes=(sizes, sizes),
        verbose=False,
    )
    assert program is not None
    served = runtime.InferenceSession(program.model_proto.SerializeToString())
    generator = torch.Generator().manual_seed(2)
    longer = torch.randint(5, 64, (5, 17), generator=generator)
    real = (torch.arange(17) < torch.tensor([17, 3, 9, 1, 12])[:, None]).long()
    for ids, mask in ((inputs["input_ids"], inputs["attention_mask"]), (longer, real)):
        (found,) = served.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            wanted = model(ids, mask)
        assert (torch.from_numpy(found) - wanted).abs().max() <= 2e-6
    assert not torch.onnx.is_in_onnx_export()
