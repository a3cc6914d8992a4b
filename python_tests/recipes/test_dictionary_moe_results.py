"""Numbers of results.json against their definitions in NumPy. Legend: N rows, E experts, D features, M atoms."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from python_tests.recipes.small_run import save_small_table, small_run
from stratcore import analysis
from stratcore.analysis.schema import to_plain
from stratcore.recipes import DictionaryMoERun
from stratcore.recipes.dictionary_moe_data import PreparedData, prepare
from stratcore.recipes.dictionary_moe_results import Evaluation, evaluate
from stratcore.recipes.dictionary_moe_run import Trained, single_dictionaries, train
from stratcore.training import Runtime
from stratcore.training.tasks import ObjectiveOptions, Rows

pytestmark = pytest.mark.usefixtures("single_thread")
CPU = torch.device("cpu")
LEVELS = np.array([2, 4])


@dataclass(frozen=True)
class Case:
    """A run on the small table, and its results as JSON has them."""

    run: DictionaryMoERun
    data: PreparedData
    rows: dict[str, Rows]
    mixture: Trained
    peers: dict[str, Trained]
    evaluation: Evaluation
    results: dict[str, Any]


def make(folder: Path, *settings: str) -> Case:
    save_small_table(folder)
    run = small_run(*settings, source=str(folder / "rows.safetensors"))
    data = prepare(run, folder)
    rows = {part: data.rows(part) for part in ("train", "validation", "test")}
    runtime = Runtime.create("cpu")
    mixture = train(run, run.model, run.objective, rows, runtime, folder / "mixture", None)
    peers = {
        name: train(run, options, ObjectiveOptions(), rows, runtime, folder / name, None)
        for name, options in single_dictionaries(mixture.model, rows["validation"].x).items()
        if run.baselines
    }
    evaluation = Evaluation(run, data, rows, mixture, peers, CPU)
    results = evaluation.results("the command", CPU)
    analysis.validate_results(results)
    return Case(run, data, rows, mixture, peers, evaluation, to_plain(results))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def by_threshold(tmp_path_factory: pytest.TempPathFactory) -> Case:
    settings = ("model.selection=threshold", "model.candidates=1", "model.energy_rank=0", "start=random")
    return make(tmp_path_factory.mktemp("threshold"), *settings, "model.atoms=64", "baselines=false")


@dataclass(frozen=True)
class Own:
    """What a model makes of rows, from its parameters: codes [E, N, M], each expert's rows [E, N, D], gate [N, E]."""

    codes: np.ndarray
    each: np.ndarray
    gate: np.ndarray
    chosen: np.ndarray

    @property
    def active(self) -> np.ndarray:
        return np.array([(self.codes[e, n] != 0).sum() for n, e in enumerate(self.chosen)])

    @property
    def reconstruction(self) -> np.ndarray:
        return np.array([self.each[e, n] for n, e in enumerate(self.chosen)])


@torch.no_grad()
def own(case: Case, part: str) -> Own:
    model, x_ND = case.mixture.model, case.rows[part].x
    codes = model.experts(x_ND)[0].numpy()
    atoms_EDM, centers_ED = model.experts.atoms.numpy(), model.experts.centers.numpy()
    each = np.einsum("enm,edm->end", codes, atoms_EDM) + centers_ED[:, None]
    logits = model.gate(x_ND).numpy().astype(np.float64)
    gate = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if case.run.model.selection == "threshold":
        eligible = gate >= 0.5 * gate.max(1, keepdims=True)
        chosen = np.where(eligible, LEVELS, 99).argmin(1)
    else:  # both experts are candidates: the cheaper one
        squares = ((x_ND.numpy() - each) ** 2).sum(-1).T
        log_variance = float(model.log_variance)
        cost = squares / (2 * np.exp(log_variance)) + case.run.model.rate * LEVELS
        chosen = cost.argmin(1)
    return Own(codes, each, gate, chosen)


def fvu(x: np.ndarray, xhat: np.ndarray, center: np.ndarray) -> float:
    return float(((x - xhat) ** 2).sum() / ((x - center) ** 2).sum())


def both_spaces(case: Case, xhat: np.ndarray) -> tuple[float, float]:
    """FVU of held-out reconstructions in the model's space: among the components, and in the original space."""
    data = case.data
    train, test = (
        data.table.embeddings[part].astype(np.float64) for part in (data.split.train, data.split.test)
    )
    mean, axes = train.mean(0), data.pca.components_
    z_train, z_test = (train - mean) @ axes.T, (test - mean) @ axes.T
    zhat = xhat * np.sqrt(((z_train - z_train.mean(0)) ** 2).mean()) + z_train.mean(0)
    return fvu(z_test, zhat, z_train.mean(0)), fvu(test, zhat @ axes + mean, mean)


@pytest.mark.parametrize("name", ["case", "by_threshold"])
def test_fvu_of_the_chosen_expert_in_both_spaces(name: str, request: pytest.FixtureRequest) -> None:
    case = request.getfixturevalue(name)
    overall = case.results["reconstruction"]["overall"]
    expected = both_spaces(case, own(case, "test").reconstruction)
    for space, value in zip(("pca_space", "original_space"), expected, strict=True):
        assert overall[space]["fvu"] == pytest.approx(value, rel=1e-4)
        assert overall[space]["r2"] == pytest.approx(1 - value, rel=1e-4)
        assert overall[space]["num_rows"] == len(case.data.split.test) == 45
        assert overall[space]["fvu_low"] < value < overall[space]["fvu_high"]
    assert expected[0] < expected[1], "the original space holds what the reduction left out"


def test_fvu_of_each_expert_on_its_own_rows(case: Case) -> None:
    made, z_test = own(case, "test"), case.data.reduced("test")
    zhat = made.reconstruction * case.data.scale + case.data.center
    for expert, entry in enumerate(case.results["reconstruction"]["per_expert"]):
        mine = made.chosen == expert
        assert (entry["expert"], entry["sparsity"]) == (expert, LEVELS[expert])
        value = fvu(z_test[mine], zhat[mine], case.data.center)
        assert entry["pca_space"]["fvu"] == pytest.approx(value, rel=1e-4)
        assert entry["pca_space"]["num_rows"] == mine.sum() > 1


@pytest.mark.parametrize("name", ["case", "by_threshold"])
def test_all_experts_mixed_by_the_gate(name: str, request: pytest.FixtureRequest) -> None:
    case = request.getfixturevalue(name)
    made = own(case, "test")
    xhat = np.einsum("ne,end->nd", made.gate, made.each)
    (entry,) = (each for each in case.results["reconstruction"]["baselines"] if each["role"] == "other")
    assert entry["pca_space"]["fvu"] == pytest.approx(both_spaces(case, xhat)[0], rel=1e-4)
    overall = case.results["reconstruction"]["overall"]["pca_space"]["fvu"]
    assert entry["difference"]["value"] == pytest.approx(entry["pca_space"]["fvu"] - overall, rel=1e-6)
    assert abs(entry["difference"]["value"]) > 1e-4, "not the chosen expert again"


@pytest.mark.parametrize("name", ["case", "by_threshold"])
def test_active_atoms_and_gate(name: str, request: pytest.FixtureRequest) -> None:
    case = request.getfixturevalue(name)
    made, results = own(case, "test"), case.results
    assert results["reconstruction"]["overall"]["mean_active_atoms"] == pytest.approx(made.active.mean())
    assert made.active.max() <= 4
    counts = np.array(results["assignment"]["counts"])
    np.testing.assert_array_equal(counts.sum(0), np.bincount(made.chosen, minlength=2))
    domain = case.data.table.domain[case.data.split.test]
    assert results["gate"]["domains"] == results["assignment"]["domains"] == ["letters", "numbers", "signs"]
    for index, mean in enumerate(results["gate"]["mean_by_domain"]):
        np.testing.assert_allclose(mean, made.gate[domain == index].mean(0), atol=1e-5)
        np.testing.assert_array_equal(counts[index], np.bincount(made.chosen[domain == index], minlength=2))
    per_row = -(made.gate * np.log(made.gate)).sum(1).mean() / np.log(2)
    of_mean = -(made.gate.mean(0) * np.log(made.gate.mean(0))).sum() / np.log(2)
    statistics = results["gate"]["statistics"]
    assert statistics["entropy_per_sample"] == pytest.approx(per_row, abs=1e-4)
    assert statistics["mutual_information_fraction"] == pytest.approx(of_mean - per_row, abs=1e-4)
    assert results["sparsity"]["mean"] == pytest.approx((made.gate @ LEVELS).mean(), rel=1e-5)
    assert results["sparsity"]["levels"] == [2, 4] and results["sparsity"]["uniform_gate"] == 3.0


@pytest.mark.parametrize("name", ["case", "by_threshold"])
def test_usage_and_dead_atoms_are_those_of_the_training_rows(
    name: str, request: pytest.FixtureRequest
) -> None:
    case = request.getfixturevalue(name)
    made = own(case, "train")
    usage, usage_chosen = np.zeros((2, 2, case.run.model.atoms), int)
    for row, chosen in enumerate(made.chosen):
        for expert in [chosen] if name == "by_threshold" else [0, 1]:  # the experts that run on the row
            usage[expert] += made.codes[expert, row] != 0
        usage_chosen[chosen] += made.codes[chosen, row] != 0
    np.testing.assert_array_equal(case.evaluation.train.usage, usage)
    experts = case.results["experts"]
    np.testing.assert_allclose(experts["dead_atoms"], (usage == 0).mean(1))
    np.testing.assert_allclose(experts["dead_atoms_chosen"], (usage_chosen == 0).mean(1))
    assert any(experts["dead_atoms"]) is (name == "by_threshold"), "64 atoms are more than 210 rows need"
    energy = np.sqrt((made.codes.astype(np.float64) ** 2).mean(1))
    np.testing.assert_allclose(case.evaluation.train.energy, energy, rtol=1e-5)
    cosine = np.abs(np.einsum("edm,edn->emn", *[case.mixture.model.experts.atoms.detach().numpy()] * 2))
    largest = [(matrix - np.diag(matrix.diagonal())).max() for matrix in cosine]
    np.testing.assert_allclose(experts["coherence"], largest, rtol=1e-4)


def test_baselines_of_equal_dimension_flops_and_parameters(case: Case) -> None:
    overall = case.results["reconstruction"]["overall"]
    entries = {entry["role"]: entry for entry in case.results["reconstruction"]["baselines"]}
    pca = entries["pca_equal_dimension"]
    components = round(overall["mean_active_atoms"])
    z_train, z_test = case.data.reduced("train"), case.data.reduced("test")
    kept = np.r_[np.ones(components), np.zeros(8 - components)]  # the columns are principal components
    assert pca["mean_active_atoms"] == components
    assert pca["pca_space"]["fvu"] == pytest.approx(fvu(z_test, z_test * kept, z_train.mean(0)), rel=1e-6)
    flops, parameters = entries["topk_equal_flops"], entries["topk_equal_parameters"]
    assert flops["active_flops"] <= overall["active_flops"]
    assert parameters["parameters"] <= overall["parameters"]
    for role in ("topk_equal_flops", "topk_equal_parameters"):
        peer, test = case.peers[role].model, case.rows["test"].x
        with torch.no_grad():
            codes, each = peer.experts(test)
        assert entries[role]["pca_space"]["fvu"] == pytest.approx(
            both_spaces(case, each[0].numpy())[0], rel=1e-4
        )
        assert entries[role]["mean_active_atoms"] == pytest.approx(
            float((codes[0] != 0).sum(-1).float().mean())
        )


def test_dimensions_stand_above_the_learned_noise(case: Case) -> None:
    made, z_test = own(case, "test"), case.data.reduced("test")
    noise = float(np.exp(case.mixture.model.log_variance.item())) * case.data.scale**2
    strata = case.results["dimensions"]["per_stratum"]
    assert len(strata) == len(np.unique(made.chosen)) == 2
    for expert, stratum in enumerate(strata):
        rows = z_test[made.chosen == expert]
        assert (stratum["stratum"], stratum["num_rows"]) == (f"E{expert} (k={LEVELS[expert]})", len(rows))
        variance = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
        share = np.cumsum(variance) / variance.sum()
        assert stratum["pca_dimension"] == int(np.argmax(share >= 0.75)) + 1
        assert noise > 0


def test_what_the_results_say_of_the_run(case: Case) -> None:
    results = case.results
    assert (results["recipe"], results["command"], results["seeds"]) == ("dictionary_moe", "the command", [0])
    assert results["configuration"]["model"]["sparsities"] == [2, 4]
    assert results["training"]["steps"] == 6 and results["training"]["seconds"] > 0
    assert results["training"]["final_losses"]["best_step"] == 6
    tokens = case.data.table.token_count[case.data.split.test]
    domain = case.data.table.domain[case.data.split.test]
    for index, entry in enumerate(results["data"]["domains"]):
        assert (entry["num_train"], entry["num_test"]) == (70, 15)
        assert entry["mean_tokens"] == pytest.approx(tokens[domain == index].mean())
    assert results["pca"]["num_components"] == 8
    shares = case.data.pca.explained_variance_ratio_
    assert results["pca"]["variance_share_train"] == pytest.approx(shares.sum(), rel=1e-6)


def test_the_rule_is_told_in_words(case: Case, by_threshold: Case) -> None:
    both = case.results["assignment"]["rule"]
    assert both == "of the 2 experts of largest gate probability, the one of least penalized residual"
    rule = by_threshold.results["assignment"]["rule"]
    assert (
        rule == "the expert of lowest sparsity among those with at least half of the largest gate probability"
    )


@pytest.mark.parametrize(
    "settings",
    [("model.input_dim=1", "model.sparsities=[1,2]"), ("model.input_dim=2",), ("model.sparsities=[4]",)],
)
def test_flat_rows_and_a_single_expert_are_reported_too(settings: tuple[str, ...], tmp_path: Path) -> None:
    case = make(tmp_path, *settings, "model.candidates=1", "baselines=false", "stage.steps=2")
    view, dim = case.evaluation.view(), case.run.model.input_dim
    assert view.points.shape == (45, 3) and len(view.variance_shares) == 3
    np.testing.assert_allclose(view.points[:, : min(3, dim)], case.data.reduced("test")[:, :3])
    assert not view.points[:, dim:].any() and not any(view.variance_shares[dim:])
    json.dumps(case.results, allow_nan=False)
    figures = analysis.run_figures(case.results, view)
    assert {"results_summary", "embedding_3d"} <= set(figures)
    pca = next(e for e in case.results["reconstruction"]["baselines"] if e["role"] == "pca_equal_dimension")
    assert pca["mean_active_atoms"] <= dim


def test_unreduced_rows_are_viewed_along_their_principal_components(tmp_path: Path) -> None:
    case = make(tmp_path, "data.reduce=false", "model.input_dim=16", "baselines=false", "stage.steps=2")
    view = case.evaluation.view()
    train, test = case.data.reduced("train"), case.data.reduced("test")
    _, _, axes = np.linalg.svd(train - train.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(view.points), np.abs((test - train.mean(0)) @ axes[:3].T), atol=1e-8)
    overall = case.results["reconstruction"]["overall"]
    assert overall["pca_space"]["fvu"] == pytest.approx(overall["original_space"]["fvu"], rel=1e-9)


def test_rows_of_unknown_length_have_no_agreement_within_length(case: Case) -> None:
    table = replace(case.data.table, token_count=np.full(300, -1))
    data = replace(case.data, table=table)
    results = to_plain(Evaluation(case.run, data, case.rows, case.mixture, {}, CPU).results("x", CPU))
    assert results["agreement"]["within_length"] is None
    assert all(entry["mean_tokens"] is None for entry in results["data"]["domains"])
    assert case.results["agreement"]["within_length"] is not None


def test_a_model_is_evaluated_without_a_graph(case: Case) -> None:
    evaluated = evaluate(case.mixture.model, case.rows["test"], case.data, CPU)
    assert evaluated.gate.shape == (45, 2) and evaluated.gate.dtype == np.float64
    assert evaluated.cheapest.tolist() == own(case, "test").chosen.tolist()
