"""What every stratified block owes its user. Legend: B sequences, N tokens, D channels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from python_tests.layers.stratified_cases import BIASED, BLOCKS, call, moved, tokens_and_mask

pytestmark = pytest.mark.usefixtures("single_thread")
every_block = pytest.mark.parametrize("name", BLOCKS)
DIM = 8
TRACED_ALIKE = {
    "attention top-k",
    "routing hard",
    "layers last norm",
    "experts of odd size",
    "embedding token",
}
LOSSES = {"balance", "z", "entropy", "usage"}


def total(output):
    return output.hidden.square().mean() + 0.1 * sum(output.losses.values())


# ---- the start


@every_block
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_start_is_the_identity_bitwise(name, dtype):
    block = BLOCKS[name](DIM).to(dtype)
    x, mask = tokens_and_mask(DIM, dtype)
    for given in (None, mask, mask.long()):
        found = call(block, x, given).hidden
        assert found.dtype == dtype and torch.equal(found, x)


@every_block
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_start_is_the_identity_bitwise_under_autocast(name, dtype):
    block, (x, mask) = BLOCKS[name](DIM), tokens_and_mask(DIM, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = call(block, x, mask).hidden
    assert found.dtype == dtype and torch.equal(found, x)


@every_block
def test_one_zero_learns_at_once_and_all_else_a_step_later(name):
    block, x = BLOCKS[name](DIM), torch.randn(12, 5, DIM)
    target, start = torch.randn_like(x), copy.deepcopy(block.state_dict())
    zeros = [key for key, parameter in block.named_parameters() if not parameter.any()]
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        output = call(block, x)
        ((output.hidden - target).square().mean() + 0.1 * sum(output.losses.values())).backward()
        gradients = {key: parameter.grad for key, parameter in block.named_parameters()}
        silent = [key for key, gradient in gradients.items() if gradient is None or not gradient.any()]
        assert not set(silent) & {key for key in zeros if "combiner" in key or "output" in key}, silent
        assert step == 0 or not silent, silent
        optimizer.step()
    assert all(not torch.equal(start[key], value) for key, value in block.state_dict().items())


@every_block
def test_the_hidden_state_alone_gives_every_parameter_a_gradient(name):
    block, (x, mask) = moved(BLOCKS[name](DIM)), tokens_and_mask(DIM)
    call(block, x, mask).hidden.square().sum().backward()
    assert [key for key, parameter in block.named_parameters() if parameter.grad is None] == []


# ---- pads


@every_block
@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_change_nothing_at_real_tokens(name, side):
    block = moved(BLOCKS[name](DIM)).eval()
    x, mask = tokens_and_mask(DIM)
    wanted = call(block, x, mask)
    assert (wanted.hidden - x)[mask].abs().mean() > 1e-2
    for pads in (1, 7, 100):
        more = torch.full((3, pads, DIM), 1e3), torch.zeros(3, pads, dtype=torch.bool)
        order = slice(None, None, -1 if side == "left" else 1)
        longer = torch.cat([x, more[0]][order], 1)
        longer_mask = torch.cat([mask, more[1]][order], 1)
        found = call(block, longer, longer_mask)
        assert (found.hidden[longer_mask] - wanted.hidden[mask]).abs().max() <= 1e-5
        assert torch.equal(found.hidden[~longer_mask], longer[~longer_mask])
        for key in LOSSES:
            assert (found.losses[key] - wanted.losses[key]).abs() <= 1e-5, key
        for key, value in wanted.statistics.items():
            assert (found.statistics[key] - value).abs() <= 1e-5, key


@every_block
def test_a_mask_of_ones_is_no_mask(name):
    block, x = moved(BLOCKS[name](DIM)), torch.randn(2, 5, DIM)
    found, wanted = call(block, x, torch.ones(2, 5, dtype=torch.int64)), call(block, x)
    torch.testing.assert_close(found.hidden, wanted.hidden, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.losses, wanted.losses)


@every_block
def test_what_stands_at_pads_goes_nowhere(name):
    block, (x, mask) = moved(BLOCKS[name](DIM)), tokens_and_mask(DIM)
    wanted = call(block, x, mask).hidden[mask]
    poisoned = torch.where(mask[..., None], x, torch.nan).requires_grad_()
    output = call(block, poisoned, mask)
    assert torch.equal(output.hidden[mask], wanted)
    (output.hidden[mask].square().sum() + sum(output.losses.values())).backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())
    assert poisoned.grad.isfinite().all()


@every_block
@pytest.mark.parametrize("shape", [(2, 4), (0, 4), (2, 0)])
def test_batches_without_a_real_token_stay_as_they_are(name, shape):
    block, x = moved(BLOCKS[name](DIM)), torch.randn(*shape, DIM)
    output = call(block, x, torch.zeros(shape, dtype=torch.bool))
    assert torch.equal(output.hidden, x)
    total_loss = output.hidden.sum() + sum(output.losses.values())
    total_loss.backward()
    assert total_loss.isfinite() and all(value.isfinite() for value in output.statistics.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in block.parameters())


@every_block
def test_a_nan_stays_in_its_sequence(name):
    block, x = moved(BLOCKS[name](DIM)), torch.randn(3, 4, DIM)
    wanted = call(block, x).hidden
    if "capacity" in name:
        return  # whom a full expert drops depends on all tokens
    x[1, 2, 3] = torch.nan
    found = call(block, x).hidden
    torch.testing.assert_close(found[[0, 2]], wanted[[0, 2]], rtol=0, atol=1e-6)
    assert found[1, 2].isnan().all()


# ---- gradients, precision, compilation


@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in BIASED])
def test_gradcheck(name):
    block = moved(BLOCKS[name](4).double())
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    names = [key for key, _ in block.named_parameters()]

    class Losses(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x):
            output = call(self.block, x, mask)
            return output.hidden, sum(output.losses.values())

    def outputs(x, *values):
        values = {f"block.{key}": value for key, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Losses(), values, x)

    assert gradcheck(outputs, (x, *block.parameters()), fast_mode=True)


@every_block
def test_autocast_is_near_float32(name):
    block = moved(BLOCKS[name](DIM), 0.2).eval()
    x = torch.randn(2, 6, DIM)
    wanted = call(block, x).hidden
    with torch.autocast("cpu", torch.bfloat16):
        output = call(block, x)
    assert (output.hidden - wanted).abs().max() < 0.05 * (wanted - x).abs().max() + 0.02
    assert all(loss.dtype == torch.float32 for loss in output.losses.values())
    total(output).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in block.parameters())


@every_block
def test_bfloat16_weights(name):
    block, (x, mask) = moved(BLOCKS[name](DIM)).bfloat16(), tokens_and_mask(DIM, torch.bfloat16)
    output = call(block, x, mask)
    assert output.hidden.dtype == torch.bfloat16
    total(output).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in block.parameters())


@pytest.mark.parametrize(
    ("name", "dtype", "backend"),
    [
        ("experts capacity", torch.bfloat16, "aot_eager"),  # a grouped product
        ("experts of odd size", torch.float32, "eager"),  # a padded one
        ("attention shared", torch.float32, "aot_eager"),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated"
)  # what tracing does with autograd functions
def test_compiles_forward_and_backward(name, dtype, backend):
    torch.compiler.reset()
    block, (x, mask) = moved(BLOCKS[name](DIM)).to(dtype), tokens_and_mask(DIM, dtype)
    copied = copy.deepcopy(block)
    found = torch.compile(lambda x, mask: call(block, x, mask), fullgraph=True, backend=backend)(x, mask)
    wanted = call(copied, x, mask)
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 0.05}
    torch.testing.assert_close(found.hidden, wanted.hidden, **tolerance)
    torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-5, atol=1e-5)
    total(found).backward()
    total(wanted).backward()
    for mine, theirs in zip(block.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, **tolerance)


# Of the blocks that run the same lines one stands for all: tracing takes a second each.
@pytest.mark.parametrize("name", sorted(set(BLOCKS) - TRACED_ALIKE))
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_one_graph_serves_every_length(name):
    torch.compiler.reset()
    block = moved(BLOCKS[name](DIM)).eval()
    compiled = torch.compile(
        lambda x, mask: call(block, x, mask).hidden,
        fullgraph=True,
        dynamic=True,
        backend="eager",
    )
    with torch.no_grad():
        for stance, shape in (("default", (3, 6)), ("fail_on_recompile", (5, 31))):
            x, mask = torch.randn(*shape, DIM), torch.rand(shape) > 0.3
            with torch.compiler.set_stance(stance):
                found = compiled(x, mask)
            torch.testing.assert_close(found, call(block, x, mask).hidden, rtol=0, atol=1e-5)


class Hidden(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, mask):
        return call(self.block, x, mask).hidden


@pytest.mark.parametrize("name", ["attention hard", "layers all", "experts capacity"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_exports_with_free_batch_and_length(name):
    module, (x, mask) = Hidden(moved(BLOCKS[name](DIM)).eval()), tokens_and_mask(DIM)
    free = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("length", min=2, max=512)}
    exported = torch.export.export(module, (x, mask), dynamic_shapes={"x": free, "mask": free}).module()
    x, mask = torch.randn(7, 12, DIM), torch.rand(7, 12) > 0.3
    torch.testing.assert_close(exported(x, mask), module(x, mask), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@every_block
def test_distributed_data_parallel_finds_no_unused_parameter(name, process_group):
    block, (x, mask) = BLOCKS[name](DIM), tokens_and_mask(DIM)
    parallel, start = DistributedDataParallel(Hidden(block)), copy.deepcopy(block.state_dict())
    optimizer = torch.optim.SGD(block.parameters(), lr=1.0)
    for _ in range(3):  # the second call raises when the first left a parameter out
        optimizer.zero_grad()
        (parallel(x, mask) - 1).square().mean().backward()
        optimizer.step()
    assert any(not torch.equal(start[key], value) for key, value in block.state_dict().items())


@every_block
def test_two_runs_are_equal_bitwise(name):
    block, (x, mask) = moved(BLOCKS[name](DIM)), tokens_and_mask(DIM)
    runs = []
    for _ in range(2):
        block.zero_grad()
        output = call(block, x, mask)
        total(output).backward()
        runs.append([output.hidden.detach(), *(p.grad.clone() for p in block.parameters())])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


# ---- the result


@every_block
def test_result(name):
    block, (x, mask) = BLOCKS[name](DIM), tokens_and_mask(DIM)
    output = call(block, x, mask)
    assert set(output.losses) == LOSSES and all(loss.shape == () for loss in output.losses.values())
    assert all(loss.requires_grad for loss in output.losses.values())
    wanted = {"load_variation", "overflow"} if "capacity" in name else {"load_variation"}
    assert set(output.statistics) == wanted
    assert not any(value.requires_grad for value in output.statistics.values())
    leaves, spec = pytree.tree_flatten(output)
    assert len(leaves) > 5 and torch.equal(pytree.tree_unflatten(leaves, spec).hidden, output.hidden)


@every_block
def test_rejects_wrong_shapes_by_name(name):
    block, (x, mask) = BLOCKS[name](DIM), tokens_and_mask(DIM)
    with pytest.raises(ValueError, match=r"hidden: expected shape \[B, N, 8\], got \[3, 6, 9\]"):
        call(block, torch.randn(3, 6, 9))
    with pytest.raises(ValueError, match=r"hidden: expected shape \[B, N, 8\], got \[6, 8\]"):
        call(block, x[0])
    with pytest.raises(ValueError, match=r"mask: expected shape \[3, 6\], true at real tokens, got \[3, 5\]"):
        call(block, x, mask[:, :5])
    with pytest.raises(ValueError, match=r"mask: expected bool or integers, .*, got torch.float32"):
        call(block, x, mask.float())


@every_block
def test_saves_and_loads(name):
    block, x = moved(BLOCKS[name](DIM)), torch.randn(2, 5, DIM)
    again = BLOCKS[name](DIM)
    again.load_state_dict(block.state_dict())
    assert torch.equal(call(again, x).hidden, call(block, x).hidden)


@every_block
def test_learns_eight_sequences_by_heart(name):
    block = BLOCKS[name](DIM)
    x = torch.randn(8, 2, DIM)
    target = x + 0.3 * torch.randn(8, 2, DIM)
    optimizer = torch.optim.Adam(block.parameters(), lr=2e-2)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        loss = (call(block, x).hidden - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < (0.9 if "embedding" in name or "layers" in name else 0.5) * losses[0], losses[-1]
