"""What a dictionary-mixture run reports. Legend: N held-out rows, E experts, M atoms, R reduced features."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stratcore import analysis
from stratcore.analysis.plots import View
from stratcore.models.dictionary_moe import DictionaryMoE
from stratcore.recipes.dictionary_moe import DictionaryMoERun
from stratcore.recipes.dictionary_moe_data import PreparedData
from stratcore.recipes.dictionary_moe_run import Trained, count_parameters
from stratcore.recipes.environment import environment
from stratcore.training.tasks import Rows

RULES = {
    "soft": "largest gate probability",
    "straight_through": "largest gate probability",
    "threshold": "lowest sparsity among those with at least half of the largest gate probability",
}


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A model on rows: gate [N, E], chosen and cheapest expert [N], reconstructions [N, R], active atoms [N].

    reconstruction: of the chosen expert; soft: of all experts, weighted by the gate's probabilities.
    usage: [E, M], how many of the rows that an expert is run on use an atom; usage_chosen: of the rows that it
    is chosen for; energy: [E, M], root mean square of the codes.
    """

    gate: np.ndarray
    chosen: np.ndarray
    cheapest: np.ndarray
    reconstruction: np.ndarray
    soft: np.ndarray
    active: np.ndarray
    usage: np.ndarray
    usage_chosen: np.ndarray
    energy: np.ndarray


@torch.no_grad()
def evaluate(model: DictionaryMoE, rows: Rows, data: PreparedData, device: torch.device) -> Evaluated:
    """Runs a trained model on all rows of a part."""
    x_ND = rows.x.to(device)
    output = model(x_ND)
    chosen_N = model.choose(output)
    index_N = torch.arange(x_ND.shape[0], device=device)
    codes_NM = output.codes[chosen_N, index_N]
    run_NE = torch.zeros_like(output.weights, dtype=torch.bool).scatter_(1, model.candidates(output), True)
    is_chosen_NE = torch.zeros_like(run_NE).scatter_(1, chosen_N[:, None], True)
    active_ENM = output.codes != 0
    each_END = model.experts.decode(output.codes)
    return Evaluated(
        gate=output.probabilities.double().cpu().numpy(),
        chosen=chosen_N.cpu().numpy(),
        cheapest=output.cost.argmin(-1).cpu().numpy(),
        reconstruction=data.unscale(each_END[chosen_N, index_N]),
        soft=data.unscale(torch.einsum("ne,end->nd", output.probabilities, each_END)),
        active=(codes_NM != 0).sum(-1).double().cpu().numpy(),
        usage=(active_ENM & run_NE.mT[..., None]).sum(1).cpu().numpy(),
        usage_chosen=(active_ENM & is_chosen_NE.mT[..., None]).sum(1).cpu().numpy(),
        energy=output.codes.square().mean(1).sqrt().double().cpu().numpy(),
    )


class Evaluation:
    """Held-out results of a run; each method makes one part of results.json."""

    def __init__(
        self,
        run: DictionaryMoERun,
        data: PreparedData,
        rows: dict[str, Rows],
        mixture: Trained,
        peers: dict[str, Trained],
        device: torch.device,
    ) -> None:
        self.run, self.data, self.mixture, self.peers = run, data, mixture, peers
        self.levels = list(run.model.sparsities)
        self.z_train, self.z_test = data.reduced("train"), data.reduced("test")
        self.x_test = data.table.embeddings[data.split.test].astype(np.float64)
        self.center = self.z_train.mean(0)
        names = np.array(data.table.domain_names)
        self.domain, self.train_domain = (
            names[data.table.domain[part]] for part in (data.split.test, data.split.train)
        )
        self.tokens = data.table.token_count[data.split.test]
        self.test = evaluate(mixture.model, rows["test"], data, device)
        self.train = evaluate(mixture.model, rows["train"], data, device)
        self.peer_tests = {
            name: evaluate(peer.model, rows["test"], data, device) for name, peer in peers.items()
        }

    def results(self, command: str, device: torch.device) -> dict[str, Any]:
        """results.json as `analysis.results.Results` has it."""
        return {
            "schema_version": analysis.SCHEMA_VERSION,
            "recipe": self.run.recipe,
            "command": command,
            "environment": environment(device),
            "configuration": asdict(self.run),
            "seeds": [self.run.seed],
            "data": self._data(),
            "pca": self._pca(),
            "reconstruction": self._reconstruction(),
            **self._gate(),
            "agreement": self._agreement(),
            **self._strata(),
            "experts": self._experts(),
            "training": {
                "steps": self.mixture.steps,
                "seconds": self.mixture.seconds,
                "final_losses": self.mixture.losses,
            },
        }

    def view(self) -> View:
        """Held-out rows in their first three principal components."""
        points, pca = self.z_test, self.data.pca
        if pca is None:
            pca = analysis.fit_pca(self.z_train, min(3, self.z_train.shape[1]))
            points = pca.transform(self.z_test)
        missing = max(0, 3 - points.shape[1])  # a flat view of fewer than three dimensions
        return View(
            points=np.pad(points[:, :3], ((0, 0), (0, missing))),
            domains=self.domain,
            experts=self.test.chosen,
            variance_shares=np.pad(pca.explained_variance_ratio_[:3], (0, missing)).tolist(),
        )

    def _data(self) -> dict[str, Any]:
        known = self.tokens >= 0
        domains = []
        for name in sorted(set(self.domain) | set(self.train_domain)):
            own = (self.domain == name) & known
            domains.append(
                {
                    "name": str(name),
                    "num_train": int((self.train_domain == name).sum()),
                    "num_test": int((self.domain == name).sum()),
                    "mean_tokens": float(self.tokens[own].mean()) if own.any() else None,
                }
            )
        return {
            "name": self.data.table.source,
            "num_train": len(self.z_train),
            "num_test": len(self.z_test),
            "num_features": self.data.table.dim,
            "domains": domains,
        }

    def _pca(self) -> Any:
        train = self.data.table.embeddings[self.data.split.train]
        pca = self.data.pca or analysis.fit_pca(train, min(self.data.table.dim, len(train) - 1))
        return analysis.pca_summary(pca, train, self.x_test)

    def _scores(self, xhat: np.ndarray, own: np.ndarray | None = None) -> dict[str, Any]:
        rows = slice(None) if own is None else own
        original_center = self.data.restore(self.center[None])[0]
        return {
            "pca_space": analysis.score_reconstruction(self.z_test[rows], xhat[rows], self.center),
            "original_space": analysis.score_reconstruction(
                self.x_test[rows], self.data.restore(xhat[rows]), original_center
            ),
        }

    def _reconstruction(self) -> dict[str, Any]:
        model, active = self.mixture.model, float(self.test.active.mean())
        experts = []
        for expert, level in enumerate(self.levels):
            own = self.test.chosen == expert
            scores = (
                self._scores(self.test.reconstruction, own)
                if own.sum() > 1
                else dict.fromkeys(("pca_space", "original_space"))
            )
            experts.append({"expert": expert, "sparsity": level, **scores})
        dim = self.z_train.shape[1]
        components = min(dim, max(1, round(active)))
        everything = replace(model.options, candidates=len(self.levels)).active_flops_per_row
        peers = [
            ("PCA of equal dimension", "pca_equal_dimension",
             analysis.pca_reconstruction(self.z_train, self.z_test, components),
             (components + 1) * dim, 4.0 * components * dim, float(components)),
            ("all experts mixed by the gate", "other", self.test.soft, count_parameters(model), everything, None),
        ]  # fmt: skip
        for name, title in (("topk_equal_flops", "one TopK dictionary, equal active FLOPs"),
                            ("topk_equal_parameters", "one TopK dictionary, equal parameters")):  # fmt: skip
            if name in self.peers:
                peer, test = self.peers[name].model, self.peer_tests[name]
                peers.append((title, name, test.reconstruction, count_parameters(peer.experts),
                              peer.options.active_flops_per_row, float(test.active.mean())))  # fmt: skip
        return {
            "overall": self._scores(self.test.reconstruction)
            | _size(
                "mixture, the chosen expert",
                count_parameters(model),
                model.options.active_flops_per_row,
                active,
            ),
            "per_expert": experts,
            "baselines": [
                self._scores(xhat)
                | {
                    "role": role,
                    "difference": analysis.fvu_difference(
                        self.z_test, self.test.reconstruction, xhat, self.center
                    ),
                }
                | _size(name, parameters, flops, atoms)
                for name, role, xhat, parameters, flops, atoms in peers
            ],  # fmt: skip
        }

    def _gate(self) -> dict[str, Any]:
        by_domain, names = analysis.mean_gate(self.test.gate, self.domain)
        histogram = analysis.assignment_histogram(self.test.chosen, self.domain, len(self.levels))
        return {
            "gate": {
                "statistics": analysis.gate_statistics(self.test.gate),
                "domains": names,
                "mean_by_domain": by_domain,
            },
            "assignment": {
                "rule": self._rule(),
                "domains": histogram.groups,
                "counts": histogram.counts,
                "shares": histogram.shares,
                "purity": analysis.purity(histogram.counts),
                "concentration": analysis.concentration(histogram.counts),
            },
        }

    def _rule(self) -> str:
        first = RULES[self.run.model.selection]
        candidates = min(self.run.model.candidates, len(self.levels))
        if candidates == 1:
            return f"the expert of {first}"
        return f"of the {candidates} experts of {first}, the one of least penalized residual"

    def _agreement(self) -> dict[str, Any]:
        within = None
        if (self.tokens >= 0).all():
            within = analysis.within_bins(self.test.chosen, self.domain, self.tokens, 5)
        experts = len(self.levels)
        return {
            "overall": analysis.agreement(self.test.chosen, self.domain),
            "within_length": within,
            "baselines": analysis.cluster_baselines(
                self.z_train,
                self.z_test,
                self.domain,
                experts,
                seeds=tuple(range(self.run.seed, self.run.seed + 3)),
            ),
        }

    def _strata(self) -> dict[str, Any]:
        strata = np.array([f"E{expert} (k={self.levels[expert]})" for expert in self.test.chosen])
        whole = np.full(len(self.z_test), "all rows")
        noise = float(self.mixture.model.log_variance.detach().exp()) * self.data.scale**2
        return {
            "dimensions": {
                "strata": "A stratum is the set of held-out rows of one expert.",
                "variance": 0.75,
                "overall": analysis.stratum_dimensions(self.z_test, whole, noise_variance=noise)[0],
                "per_stratum": analysis.stratum_dimensions(self.z_test, strata, noise_variance=noise),
            },
            "sparsity": {
                "levels": self.levels,
                "uniform_gate": float(np.mean(self.levels)),
                "mean": float((self.test.gate @ self.levels).mean()),
                "per_stratum": analysis.weighted_sparsity(self.test.gate, self.levels, strata),
            },
        }

    def _experts(self) -> dict[str, Any]:
        atoms = self.mixture.model.experts.atoms.detach().double().cpu().numpy()
        return {
            "num_atoms": atoms.shape[2],
            "distances": analysis.expert_distances(atoms, rank=min(self.levels), weights=self.train.energy),
            "coherence": [analysis.mutual_coherence(each) for each in atoms],
            "dead_atoms": analysis.dead_atom_share(self.train.usage),
            "dead_atoms_chosen": analysis.dead_atom_share(self.train.usage_chosen),
        }


def _size(name: str, parameters: int, flops: float, atoms: float | None) -> dict[str, Any]:
    return {"name": name, "parameters": parameters, "active_flops": float(flops), "mean_active_atoms": atoms}


def write_run(
    run: DictionaryMoERun,
    folder: Path,
    data: PreparedData,
    rows: dict[str, Rows],
    mixture: Trained,
    peers: dict[str, Trained],
    command: str,
    device: torch.device,
) -> None:
    """Writes results.json, plots and report.html into the run folder."""
    evaluation = Evaluation(run, data, rows, mixture, peers, device)
    results = evaluation.results(command, device)
    analysis.write_results(folder / "results.json", results)
    records = analysis.read_metrics(folder / "metrics.jsonl")
    metrics = [{"step": record["step"], "split": record["split"], **record["values"]} for record in records]
    figures = analysis.run_figures(results, evaluation.view(), metrics)
    paths = analysis.save_figures(folder / "plots", figures)
    analysis.write_report(folder, results, paths)
