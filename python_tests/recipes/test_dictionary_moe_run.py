from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from python_tests.recipes.small_run import save_small_table, small_run
from stratcore.models import DictionaryMoE, DictionaryMoEOptions
from stratcore.recipes import DictionaryMoERun, dictionary_moe, dictionary_moe_seed
from stratcore.recipes.dictionary_moe_data import prepare
from stratcore.recipes.dictionary_moe_run import (
    Trained,
    _largest,
    build,
    count_parameters,
    execute,
    single_dictionaries,
    train,
)
from stratcore.training import Runtime, open_checkpoint, resolve_checkpoint, seed_everything

pytestmark = pytest.mark.usefixtures("single_thread")
CPU = torch.device("cpu")


def planes(dims: tuple[int, ...] = (2, 4), rows: int = 90, dim: int = 8) -> tuple[Tensor, Tensor]:
    """Rows on planes of these dimensions through different centers, and the plane of each."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for number, plane in enumerate(dims):
        axes = torch.linalg.qr(torch.randn(dim, plane, generator=generator)).Q
        center = 3 * torch.nn.functional.one_hot(torch.tensor(number), dim)
        parts.append(center + torch.randn(rows, plane, generator=generator) @ axes.mT)
    return torch.cat(parts), torch.arange(len(dims)).repeat_interleave(rows)


# ---- single dictionaries of equal cost


def test_parameters_that_learn_are_counted() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    assert count_parameters(model) == 3 * 5 + 5 + 5 * 2 + 2
    model[1].bias.requires_grad_(False)
    assert count_parameters(model) == 3 * 5 + 5 + 5 * 2


def test_parameters_of_the_source_documents_mixture() -> None:
    dictionaries = 7 * 64 * 32
    encoders = 5 * 7 * 32 * 64 + 4 * 7 * 32 * 32 + 5 * 7  # directions, products, step sizes
    gate = 64 * 128 + 128 + 7 * 128
    head = 32 * 32 + 32 + 32 * 64
    model = DictionaryMoE(dictionary_moe_seed().model)
    assert count_parameters(model.experts) == dictionaries + encoders
    assert count_parameters(model.head) == head
    # One more: the variance of the residual.
    assert count_parameters(model) == dictionaries + encoders + gate + head + 1


@pytest.mark.parametrize("limit", range(3, 40))
def test_the_largest_number_that_fits(limit: int) -> None:
    asked = []

    def fits(number: int) -> bool:
        asked.append(number)
        return number <= limit

    assert _largest(3, fits) == limit
    assert len(asked) <= 12


SIZES = {
    "small": small_run().model,
    "one candidate": replace(small_run().model, candidates=1),
    "affine gate": replace(small_run().model, energy_rank=0, query_dim=4, candidates=1),
    "tied": replace(small_run().model, tied=True, threshold=None),
    "per step": replace(small_run().model, per_step=True, form="classic", num_steps=2),
    "ours": dictionary_moe().model,
    "source documents": dictionary_moe_seed().model,
}


@pytest.mark.parametrize("size", SIZES)
def test_single_dictionaries_cost_at_most_as_much_within_one_atom(size: str) -> None:
    model = DictionaryMoE(SIZES[size])
    x_BD = torch.randn(40, model.options.input_dim)
    peers = single_dictionaries(model, x_BD)
    assert list(peers) == ["topk_equal_flops", "topk_equal_parameters"]

    def parameters(options: DictionaryMoEOptions) -> int:
        return count_parameters(DictionaryMoE(options).experts)

    flops, weights = peers.values()
    assert flops.active_flops_per_row <= model.options.active_flops_per_row
    assert replace(flops, atoms=flops.atoms + 1).active_flops_per_row > model.options.active_flops_per_row
    assert parameters(weights) <= count_parameters(model)
    assert parameters(replace(weights, atoms=weights.atoms + 1)) > count_parameters(model)

    output = model(x_BD)
    chosen = model.choose(output)
    active = [int((output.codes[e, row] != 0).sum()) for row, e in enumerate(chosen.tolist())]
    for options in peers.values():
        assert options.sparsities == (math.ceil(sum(active) / len(active)),)
        assert options.head is None and options.candidates == 1 and options.energy_rank == 0
        kept = ("input_dim", "num_steps", "form", "tied", "per_step", "threshold", "backward", "centers")
        assert all(getattr(options, name) == getattr(model.options, name) for name in kept)


# ---- starts


def test_a_random_start_has_unit_atoms_and_leaves_the_rows_out() -> None:
    x_BD, _ = planes()
    run = small_run("start=random")
    seed_everything(3)
    first = build(run, run.model, x_BD)
    seed_everything(3)
    moved = build(run, run.model, x_BD + 5.0)
    torch.testing.assert_close(first.experts.atoms.norm(dim=1), torch.ones(2, 16))
    assert torch.equal(first.experts.atoms, moved.experts.atoms)
    assert first.experts.centers.abs().max() == 0


def test_a_start_on_subspaces_gives_every_expert_one_plane() -> None:
    x_BD, plane_B = planes()
    run = small_run("start=subspaces", "model.candidates=1", "objective.noise=0")
    model = build(run, run.model, x_BD)
    chosen_B = model.choose(model(x_BD))
    # The plane of two dimensions goes to the expert of sparsity 2, that of four to sparsity 4.
    assert (chosen_B == plane_B).float().mean() > 0.95
    for expert in range(2):
        mean = x_BD[plane_B == expert].mean(0)
        torch.testing.assert_close(model.experts.centers[expert], mean, atol=0.15, rtol=0)
    torch.testing.assert_close(model.experts.atoms.norm(dim=1), torch.ones(2, 16))

    @torch.no_grad()
    def fvu(model: DictionaryMoE) -> float:
        residual = model(x_BD).residuals.gather(1, plane_B[:, None]).sum()
        return float(residual / (x_BD - x_BD.mean(0)).square().sum())

    assert fvu(model) < 0.1 < fvu(build(replace(run, start="random"), run.model, x_BD))


def test_one_expert_starts_on_all_rows() -> None:
    x_BD, _ = planes()
    run = small_run("model.sparsities=[4]", "model.candidates=1")
    model = build(run, run.model, x_BD)
    torch.testing.assert_close(model.experts.centers[0], x_BD.mean(0))


# ---- training


def trained(folder: Path, *settings: str) -> tuple[DictionaryMoERun, Trained]:
    save_small_table(folder)
    run = small_run(*settings, source=str(folder / "rows.safetensors"))
    data = prepare(run, folder)
    rows = {part: data.rows(part) for part in ("train", "validation", "test")}
    return run, train(run, run.model, run.objective, rows, Runtime.create("cpu"), folder, None)


def test_the_best_weights_are_returned_not_the_last(tmp_path: Path) -> None:
    # The largest FVU counts as best: an early one.
    _, result = trained(
        tmp_path, "stage.steps=8", "stage.intervals.eval_every=1", "stage.retention.best_mode=max"
    )
    assert result.steps == 8 and result.losses["best_step"] < 8
    state = result.model.state_dict()
    best, last = (
        open_checkpoint(resolve_checkpoint(tmp_path / f"checkpoint-{name}")).read("model", CPU)
        for name in ("best", "last")
    )
    assert all(torch.equal(state[name], best[name]) for name in best)
    assert not torch.equal(state["experts.atoms"], last["experts.atoms"])
    assert not result.model.training


def test_without_a_best_metric_the_last_weights_are_returned(tmp_path: Path) -> None:
    _, result = trained(tmp_path, "stage.retention.best_metric=null")
    assert result.losses["best_step"] == 6
    last = open_checkpoint(tmp_path / "checkpoint-6").read("model", CPU)
    assert torch.equal(result.model.state_dict()["experts.atoms"], last["experts.atoms"])
    assert not (tmp_path / "checkpoint-best").exists()


def test_averaged_weights_are_returned_where_they_were_evaluated(tmp_path: Path) -> None:
    _, result = trained(tmp_path, "stage.average.decay=0.9")
    checkpoint = open_checkpoint(tmp_path / "checkpoint-6")
    average = checkpoint.read("average", CPU)["weights"]
    own = checkpoint.read("model", CPU)
    for name, tensor in result.model.named_parameters():
        if tensor.requires_grad:
            assert torch.equal(tensor, average[name])
    assert not torch.equal(average["experts.atoms"], own["experts.atoms"])


def test_rows_are_looked_at_before_anything_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr(
        "stratcore.recipes.dictionary_moe_results.write_run", lambda *arguments: events.append("written")
    )
    monkeypatch.setattr(
        "stratcore.training.optimization.Optimization.run", lambda *arguments: events.append("step")
    )
    save_small_table(tmp_path)
    run = small_run("baselines=false", "stage.steps=1", source=str(tmp_path / "rows.safetensors"))
    execute(run, tmp_path, resume=False, command="x", before_training=lambda: events.append("recorded"))
    assert events == ["recorded", "step", "written"]
    assert not (tmp_path / "baselines").exists()

    missing = replace(run, data=replace(run.data, source=str(tmp_path / "none.npy")))
    with pytest.raises(ValueError, match="none.npy: no such file"):
        execute(missing, tmp_path / "other", resume=False, command="x", before_training=pytest.fail)
