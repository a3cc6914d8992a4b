"""Legend: E experts, B rows, D input size, M atoms, P head size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stratcore.models import DictionaryMoE, DictionaryMoEOptions
from stratcore.training import losses

pytestmark = pytest.mark.usefixtures("single_thread")
K = (3, 1, 2)


def options(**changes: Any) -> DictionaryMoEOptions:
    small = {"input_dim": 8, "atoms": 12, "sparsities": K, "query_dim": 6, "energy_rank": 2}
    return DictionaryMoEOptions(**{**small, **changes})


def rows(count: int = 10, dim: int = 8, seed: int = 2) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def clusters(per: int = 60) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Flat pieces of dimension 1, 3 and 2 with centers far apart, hardly any noise."""
    generator = torch.Generator().manual_seed(3)
    bases = [torch.linalg.qr(torch.randn(8, dim, generator=generator)).Q for dim in (1, 3, 2)]
    parts = [
        6 * torch.eye(8)[i] + torch.randn(per, basis.shape[1], generator=generator) @ basis.mT
        for i, basis in enumerate(bases)
    ]
    x = torch.cat(parts) + 1e-3 * torch.randn(3 * per, 8, generator=generator)
    return x, torch.arange(3).repeat_interleave(per), bases


# ---- what the mixture computes


@pytest.mark.parametrize("selection", ["soft", "straight_through", "threshold"])
def test_the_output_is_that_of_the_formulas(selection):
    model, x = DictionaryMoE(options(selection=selection, head=(5, 4), rate=0.7)), rows()
    with torch.no_grad():
        model.log_variance.fill_(-0.4)
        model.experts.centers.normal_()
        output = model(x)
        codes, each = model.experts(x)
    assert torch.equal(output.codes, codes) and output.codes.shape == (3, 10, 12)
    torch.testing.assert_close(output.logits, model.gate(x))
    torch.testing.assert_close(output.probabilities, output.logits.softmax(-1))
    for b in range(10):
        mixed = sum(output.weights[b, e] * each[e, b] for e in range(3))
        torch.testing.assert_close(output.reconstruction[b], mixed)
        code = sum(output.weights[b, e] * codes[e, b] for e in range(3))
        torch.testing.assert_close(output.projection[b], model.head(code))
        for e, k in enumerate(K):
            residual = (x[b] - each[e, b]).square().sum()
            torch.testing.assert_close(output.residuals[b, e], residual)
            wanted = residual / (2 * torch.tensor(-0.4).exp()) + 8 / 2 * -0.4 + 0.7 * k
            torch.testing.assert_close(output.cost[b, e], wanted)
    if selection == "soft":
        torch.testing.assert_close(output.weights, output.probabilities)


def test_the_cost_is_least_at_the_variance_of_the_residual():
    """Up to D / 2 log 2 pi and the rate it is the negative log-likelihood of a Gaussian residual."""
    model, x = DictionaryMoE(options(rate=0.0)), rows(200)
    variance = float(model(x).residuals[:, 0].mean().detach()) / 8
    costs = []
    for factor in (0.5, 1.0, 2.0):
        with torch.no_grad():
            model.log_variance.fill_(variance * factor).log_()
        costs.append(float(model(x).cost[:, 0].mean().detach()))
    assert costs[1] < min(costs[0], costs[2])
    assert costs[0] - costs[1] == pytest.approx(8 / 2 * (2 - 1 - torch.tensor(2.0).log().item()), rel=1e-4)


def test_no_head_no_projection_and_frozen_centers():
    model = DictionaryMoE(options(centers=False))
    assert model(rows()).projection is None and not model.experts.centers.requires_grad


def test_codes_hold_k_non_zeros_without_a_threshold():
    counts = (DictionaryMoE(options(threshold=None))(rows(40)).codes != 0).sum(-1)
    assert torch.equal(counts, torch.tensor(K)[:, None].expand(3, 40))


def test_state_dict_round_trip_is_bitwise():
    first, second = DictionaryMoE(options(head=(5, 4))), DictionaryMoE(options(head=(5, 4)))
    second.load_state_dict(first.state_dict())
    one, other = first(rows()), second(rows())
    for name in ("reconstruction", "residuals", "cost", "codes", "logits", "weights", "projection"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert "sparsities" not in first.state_dict()


@pytest.mark.parametrize("selection", ["soft", "straight_through", "threshold"])
@pytest.mark.parametrize("candidates", [1, 2, 3])
def test_the_chosen_expert_is_the_cheapest_candidate(selection, candidates):
    model = DictionaryMoE(options(selection=selection, candidates=candidates, eligibility=0.8, rate=0.1))
    with torch.no_grad():
        model.gate.keys.mul_(10)
        output = model(rows(50))
        chosen = model.choose(output)
    for b in range(50):
        first = int(output.weights[b].argmax())
        others = sorted(set(range(3)) - {first}, key=lambda e: -float(output.probabilities[b, e]))
        among = [first, *others][:candidates]
        assert int(chosen[b]) == min(among, key=lambda e: float(output.cost[b, e]))
    if candidates == 3:
        assert torch.equal(chosen, output.cost.argmin(-1))


# ---- the start


@pytest.fixture(scope="module")
def started() -> DictionaryMoE:
    x, cluster, _ = clusters()
    torch.manual_seed(0)
    model = DictionaryMoE(options())
    model.initialize(x, cluster)
    return model


def test_clusters_of_higher_dimension_go_to_experts_of_higher_sparsity(started):
    x, cluster, bases = clusters()
    expert_of_cluster = torch.tensor([1, 0, 2])  # dimensions 1, 3, 2 and k = 3, 1, 2
    torch.testing.assert_close(
        started.experts.centers[expert_of_cluster],
        torch.stack([x[cluster == c].mean(0) for c in range(3)]),
    )
    for c, basis in enumerate(bases):
        leading = started.experts.atoms[expert_of_cluster[c], :, : basis.shape[1]]
        torch.testing.assert_close(leading.square().sum(0), torch.ones(basis.shape[1]))
        inside = (basis.mT @ leading).square().sum(0)
        assert (inside > 0.999).all(), inside
    with torch.no_grad():
        output = started(x)
    wanted = expert_of_cluster[cluster]
    assert (output.logits.argmax(-1) == wanted).double().mean() > 0.98
    assert (output.cost.argmin(-1) == wanted).double().mean() > 0.95


def test_the_start_reconstructs_its_clusters_and_knows_its_error(started):
    x, cluster, _ = clusters()
    with torch.no_grad():
        output = started(x)
    own = output.residuals.gather(1, torch.tensor([1, 0, 2])[cluster][:, None])
    assert own.sum() / (x - x.mean(0)).square().sum() < 5e-3
    torch.testing.assert_close(started.log_variance, (own.mean() / 8).log())


def test_the_noise_floor_keeps_noise_out_of_the_leading_atoms():
    x, cluster, bases = clusters()
    model = DictionaryMoE(options())
    noisy = x + 0.1 * rows(len(x), seed=8)
    model.initialize(noisy, cluster, noise_floor=0.01)
    for c, expert in enumerate((1, 0, 2)):
        dim = bases[c].shape[1]
        own = noisy[cluster == c] - noisy[cluster == c].mean(0)
        unit = torch.nn.functional.normalize(own, dim=1)
        after = model.experts.atoms[expert, :, dim:].mT  # rows follow the leading directions
        assert ((after @ unit.mT).amax(1) > 0.9999).all()


def test_the_start_depends_on_the_rows_and_the_fresh_gate_only(started):
    x, cluster, _ = clusters()
    torch.manual_seed(0)
    model = DictionaryMoE(options())
    torch.rand(17)
    model.initialize(x, cluster)
    for (name, one), other in zip(model.named_parameters(), started.parameters(), strict=True):
        assert torch.equal(one, other) and one.grad is None, name


def test_a_cluster_of_equal_rows_stays_finite_with_unit_atoms():
    x, cluster, _ = clusters()
    x[cluster == 1] = torch.eye(8)[1]
    model = DictionaryMoE(options())
    model.initialize(x, cluster)
    assert all(p.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(model.experts.atoms.norm(dim=1), torch.ones(3, 12))
    assert model(x).cost.isfinite().all()


def test_uncentered_experts_start_at_the_origin():
    x, cluster, _ = clusters()
    model = DictionaryMoE(options(centers=False))
    model.initialize(x, cluster)
    assert not model.experts.centers.any() and model(x).cost.isfinite().all()


# ---- learning


@pytest.mark.parametrize("form", ["coupled", "classic"])
def test_eight_rows_are_learned_by_heart(form):
    model = DictionaryMoE(options(form=form, backward="masked", threshold=1e-4))
    x = rows(8)
    with torch.no_grad():
        start = float(model(x).residuals.amin(-1).mean())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(600):
        output = model(x)
        optimizer.zero_grad()
        # without the learned variance, whose likelihood has no lower bound once the rows are known
        losses.mixture_cost(output.residuals / 0.02, output.logits).mean().backward()
        optimizer.step()
        model.experts.normalize_atoms()
    with torch.no_grad():
        output = model(x)
    assert float((x - output.reconstruction).square().sum(-1).mean()) < 2e-3 * start


# ---- options


def test_flops_of_gate_and_active_expert_in_numbers():
    gate = 2 * 6 * (8 + 3) + 2 * 3 * 2 * (8 + 1)
    encode = 2 * 12 * 8 * (1 + 2 * 4)
    assert options().gate_flops_per_row == gate
    for candidates in (1, 2, 3):
        active = options(candidates=candidates).active_flops_per_row
        assert active == gate + candidates * (encode + 2 * 8 * 2)
    single = options(sparsities=(2,), candidates=1)
    assert single.active_flops_per_row == encode + 2 * 8 * 2
    assert options(energy_rank=0).gate_flops_per_row == 2 * 6 * (8 + 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "top"}, "selection: expected one of soft, straight_through, threshold, got 'top'"),
        ({"query_dim": 0}, "query_dim"),
        ({"energy_rank": -1}, "energy_rank"),
        ({"rate": -1.0}, "rate: expected a number >= 0, got -1.0"),
        ({"sparsities": (13,)}, r"sparsities: expected numbers in \[1, atoms = 12\]"),
        ({"sparsities": ()}, r"sparsities: expected numbers in \[1, atoms = 12\], got \(\)"),
        ({"form": "tied"}, "form"),
        ({"candidates": 0}, "candidates: expected at least 1, got 0"),
        ({"eligibility": 1.5}, "eligibility"),
        ({"eligibility": -0.5}, "eligibility"),
        ({"head": (0, 4)}, "head"),
    ],
)
def test_bad_options_are_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        replace(options(), **changes)
    assert "\n" not in str(error.value)
