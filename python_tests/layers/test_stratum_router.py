"""Legend: S strata, K chosen, D channels, T tokens."""

from __future__ import annotations

import math

import pytest
import torch

from stratcore.layers import (
    RouterOptions,
    StratumRouter,
    load_balance_loss,
    route,
    router_z_loss,
    routing_entropy,
    usage_loss,
)
from stratcore.layers.stratum_router import routing_losses

pytestmark = pytest.mark.usefixtures("single_thread")
LOSSES = (load_balance_loss, router_z_loss, routing_entropy, usage_loss)


def confident(selected: list[int], strata: int):
    """Routing of tokens that are all but certain of their stratum."""
    return route(30.0 * torch.nn.functional.one_hot(torch.tensor(selected), strata).float())


# ---- weights


def test_softmax_weights_are_the_probabilities():
    logits = torch.randn(4, 5, 3)
    routing = route(logits, temperature=2.0)
    torch.testing.assert_close(routing.probabilities, (logits / 2).softmax(-1))
    assert routing.weights is routing.probabilities
    assert torch.equal(routing.selected[..., 0], logits.argmax(-1))


def test_top_k_shares_are_those_of_the_chosen():
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0]])
    routing = route(logits, mode="top_k", top_k=2)
    e = math.e
    assert routing.selected.tolist() == [[0, 2]]
    torch.testing.assert_close(routing.weights, torch.tensor([[e / (e + 1), 0.0, 1 / (e + 1), 0.0]]))


def test_top_1_keeps_its_probability_and_so_its_gradient():
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    routing = route(logits, mode="top_k", top_k=1)
    torch.testing.assert_close(routing.weights.sum(-1), routing.probabilities.amax(-1))
    (gradient,) = torch.autograd.grad(routing.weights.sum(), logits)
    assert (gradient.abs().amax(-1) > 1e-3).all()


def test_top_k_of_all_is_softmax():
    logits = torch.randn(50, 6)
    torch.testing.assert_close(
        route(logits, mode="top_k", top_k=6).weights, logits.softmax(-1), rtol=0, atol=1e-6
    )


def test_straight_through_is_one_hot_with_the_gradient_of_softmax():
    logits = torch.randn(40, 5, requires_grad=True)
    cotangent = torch.randn(40, 5)
    hard, soft = route(logits, mode="straight_through").weights, route(logits).weights
    assert torch.equal(hard, torch.nn.functional.one_hot(logits.argmax(-1), 5).float())
    (found,) = torch.autograd.grad(hard, logits, cotangent)
    (wanted,) = torch.autograd.grad(soft, logits, cotangent)
    assert torch.equal(found, wanted) and found.abs().max() > 0.01


@pytest.mark.parametrize(("mode", "top_k"), [("top_k", 1), ("top_k", 3), ("straight_through", 1)])
def test_ties_go_to_the_lower_stratum(mode, top_k):
    routing = route(torch.zeros(2, 5), mode=mode, top_k=top_k)
    assert routing.selected.tolist() == [list(range(top_k))] * 2
    assert (routing.weights[:, top_k:] == 0).all() and (routing.weights[:, :top_k] > 0).all()


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5, 16])  # up to 4 of 16 are found one by one, more by sorting
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_choices_are_those_of_a_stable_order(top_k, device):
    logits = torch.randint(-2, 3, (400, 16)).float()
    logits[torch.rand(400, 16) < 0.2] = -math.inf
    logits[:40] = -math.inf
    logits[40:80, 3:5] = math.nan
    logits[80:120, 1:15] = -math.inf
    wanted = [
        sorted(range(16), key=lambda s, row=row: (not math.isnan(row[s]), -row[s] if row[s] == row[s] else 0))
        for row in logits.tolist()
    ]
    selected = route(logits.to(device), mode="top_k", top_k=top_k).selected
    assert selected.tolist() == [row[:top_k] for row in wanted]


@pytest.mark.parametrize("mode", ["softmax", "top_k", "straight_through"])
def test_pads_have_no_weight(mode):
    mask = torch.tensor([True, False, True])
    weights = route(torch.randn(3, 4), mask, mode=mode).weights
    assert (weights.sum(-1) > 0).tolist() == mask.tolist() and (weights[1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_raised(dtype):
    routing = route(torch.randn(3, 4).to(dtype))
    assert routing.logits.dtype == routing.weights.dtype == torch.float32
    assert route(torch.randn(3, 4).double()).weights.dtype == torch.float64


# ---- the router


@pytest.mark.parametrize("hidden_dim", [None, 0, 7])
def test_router_is_its_formula(hidden_dim):
    router = StratumRouter(6, RouterOptions(num_strata=4, hidden_dim=hidden_dim, temperature=0.5))
    x, parameters = torch.randn(2, 3, 6), dict(router.named_parameters())
    if hidden_dim == 0:
        wanted = x @ parameters["network.weight"].mT + parameters["network.bias"]
    else:
        assert parameters["network.0.weight"].shape == (hidden_dim or 3, 6)
        hidden = (x @ parameters["network.0.weight"].mT + parameters["network.0.bias"]).relu()
        wanted = hidden @ parameters["network.2.weight"].mT + parameters["network.2.bias"]
    routing = router(x)
    torch.testing.assert_close(routing.logits, wanted)
    torch.testing.assert_close(routing.weights, (2 * wanted).softmax(-1))


def test_router_of_the_source_documents_has_their_size():
    assert sum(p.numel() for p in StratumRouter(768).parameters()) == 768 * 384 + 384 + 384 * 3 + 3


def test_autocast_does_not_reach_the_router():
    router, x = StratumRouter(8), torch.randn(5, 8)
    wanted = router(x).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router(x).logits, wanted)


def test_noise_is_for_training_and_follows_the_seed():
    router, x = StratumRouter(8, RouterOptions(noise=1.0, mode="top_k")), torch.randn(50, 8)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(router(x))
    assert torch.equal(draws[0].weights, draws[1].weights)
    assert not torch.equal(draws[0].selected, draws[2].selected)
    assert torch.equal(draws[0].logits, draws[2].logits)
    router.eval()
    assert torch.equal(router(x).probabilities, draws[0].logits.softmax(-1))


def test_select_gives_a_sequence_the_mixture_of_its_mean():
    router, x = StratumRouter(4), torch.randn(2, 5, 4)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 2:] = False
    routing, weights = router.select(x, mask, "sequence")
    assert routing.weights.shape == (2, 3) and weights.shape == (2, 5, 3)
    torch.testing.assert_close(routing.logits[0], router(x[0].mean(0)).logits)
    torch.testing.assert_close(routing.logits[1], router(x[1, :2].mean(0)).logits)
    torch.testing.assert_close(router.select(x, None, "token")[1], router(x).weights)


# ---- losses


def test_losses_of_an_even_load():
    routing = confident([0, 1, 2, 3] * 3, 4)
    assert load_balance_loss(routing).item() == pytest.approx(1, abs=1e-6)
    assert usage_loss(routing).item() == pytest.approx(0, abs=1e-9)
    assert routing_entropy(routing).item() == pytest.approx(0, abs=1e-6)
    assert router_z_loss(routing).item() == pytest.approx(900, rel=1e-5)
    assert routing.load_variation().item() == pytest.approx(0, abs=1e-6)


def test_losses_of_a_collapse():
    routing = confident([2] * 8, 4)
    assert load_balance_loss(routing).item() == pytest.approx(4, abs=1e-5)
    assert usage_loss(routing).item() == pytest.approx((0.75**2 + 3 * 0.25**2) / 4, rel=1e-5)
    assert routing.load().tolist() == [0, 0, 1, 0]
    assert routing.load_variation().item() == pytest.approx(math.sqrt(3))


def test_losses_of_no_preference():
    routing = route(torch.zeros(7, 5), mode="top_k", top_k=5)
    assert load_balance_loss(routing).item() == pytest.approx(1)
    assert routing_entropy(routing).item() == pytest.approx(math.log(5))
    assert router_z_loss(routing).item() == pytest.approx(math.log(5) ** 2)


def test_load_counts_all_choices():
    routing = route(torch.tensor([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0]]), mode="top_k", top_k=2)
    assert routing.load().tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_over_real_tokens(loss):
    logits, mask = torch.randn(3, 4, 5), torch.rand(3, 4) > 0.5
    poisoned = torch.where(mask[..., None], logits, torch.nan)
    torch.testing.assert_close(loss(route(poisoned, mask)), loss(route(logits[mask])))
    nobody = loss(route(logits.requires_grad_(), torch.zeros(3, 4, dtype=torch.bool)))
    nobody.backward()
    assert nobody.item() == 0 and logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_pass_gradcheck(loss):
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda logits: loss(route(logits, mode="top_k", top_k=2)), logits)


@pytest.mark.parametrize(("mode", "top_k"), [("softmax", 1), ("top_k", 3), ("straight_through", 1)])
@pytest.mark.parametrize("shape", [(3, 4), (12,), ()])
@pytest.mark.parametrize("masked", [False, True])
def test_all_losses_at_once_are_each_of_them(mode, top_k, shape, masked):
    logits = torch.randn(*shape, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(shape) > 0.4 if masked else None
    routing = route(logits, mask, mode=mode, top_k=top_k)
    losses, variation = routing_losses(routing)
    torch.testing.assert_close(variation, routing.load_variation(), rtol=0, atol=1e-14)
    assert not variation.requires_grad and list(losses) == ["balance", "z", "entropy", "usage"]
    for name, loss in zip(losses, LOSSES, strict=True):
        wanted = loss(routing)
        torch.testing.assert_close(losses[name], wanted, rtol=0, atol=1e-14)
        found = torch.autograd.grad(losses[name], logits, retain_graph=True)
        torch.testing.assert_close(
            found, torch.autograd.grad(wanted, logits, retain_graph=True), rtol=0, atol=1e-14
        )


def test_balance_loss_spreads_a_collapsed_router():
    torch.manual_seed(0)
    router, x = StratumRouter(6, RouterOptions(num_strata=4, mode="top_k")), torch.randn(256, 6)
    with torch.no_grad():
        router.network[2].bias[0] += 3
    optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
    before = router(x).load_variation().item()
    for _ in range(150):
        optimizer.zero_grad()
        load_balance_loss(router(x)).backward()
        optimizer.step()
    assert before > 1.5 and router(x).load_variation().item() < 0.6


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_strata": 0}, "number of strata or experts: expected at least 1, got 0"),
        ({"mode": "hard"}, "mode: expected one of softmax, top_k, straight_through, got 'hard'"),
        ({"mode": "top_k", "top_k": 4}, r"top_k: expected a number in \[1, 3\], got 4"),
        ({"mode": "top_k", "top_k": 0}, r"top_k: expected a number in \[1, 3\], got 0"),
        ({"top_k": 2}, "top_k: expected 1 with mode 'softmax', got 2"),
        ({"temperature": 0.0}, "temperature: expected a positive number, got 0.0"),
        ({"temperature": math.nan}, "temperature: expected a positive number, got nan"),
        ({"noise": -1.0}, "noise: expected at least 0, got -1.0"),
        ({"hidden_dim": -1}, "hidden_dim: expected at least 0 or None, got -1"),
    ],
)
def test_rejects_options(options, message):
    with pytest.raises(ValueError, match=message):
        RouterOptions(**options)


def test_rejects_rows_and_masks_of_another_shape():
    with pytest.raises(ValueError, match=r"x: expected shape \[..., 4\], got \[2, 5\]"):
        StratumRouter(4)(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"mask: expected shape \[2\], true at real tokens, got \[3\]"):
        StratumRouter(4)(torch.randn(2, 4), torch.ones(3, dtype=torch.bool))
