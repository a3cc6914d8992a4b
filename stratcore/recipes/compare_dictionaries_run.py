"""Carries out a comparison of dictionaries. Legend: N rows, D reduced features, C clusters."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stratcore import analysis
from stratcore.analysis.sparse_coding import (
    KSVD,
    OnlineDictionaryLearning,
    fista,
    iterative_hard_thresholding,
    least_squares_codes,
    orthogonal_matching_pursuit,
)
from stratcore.analysis.subspaces import subspace_clusters
from stratcore.models.dictionary_moe import DictionaryMoE, DictionaryMoEOptions
from stratcore.recipes.compare_dictionaries import CompareDictionariesRun
from stratcore.recipes.compare_dictionaries_results import CAVEATS, answer, summarize, tables
from stratcore.recipes.dictionary_moe import DictionaryMoERun
from stratcore.recipes.dictionary_moe_data import prepare
from stratcore.recipes.dictionary_moe_run import (
    Trained,
    count_parameters,
    reconstruct,
    single_dictionaries_of,
    train,
)
from stratcore.recipes.environment import environment
from stratcore.recipes.trials import TrialLog, write_trials
from stratcore.training import Runtime
from stratcore.training.tasks import ObjectiveOptions, Rows

Coder = Callable[[np.ndarray], tuple[np.ndarray, float]]  # rows -> reconstructions, mean active atoms


@dataclass(frozen=True, eq=False)
class Fitted:
    """A method after fitting: how it codes rows, its numbers to store, and the seconds it took."""

    code: Coder
    parameters: int
    seconds: float


class Setting:
    """The methods for one seed and one k. Rows are those that the models see: mean 0, root mean square 1."""

    def __init__(
        self, run: DictionaryMoERun, k: int, rounds: int, rows: dict[str, Rows], runtime: Runtime
    ) -> None:
        self.options = replace(run.model, sparsities=(k,) * len(run.model.sparsities))
        self.run, self.k, self.rounds, self.rows, self.runtime = run, k, rounds, rows, runtime
        self.train_ND = rows["train"].x.double().numpy()
        self.dim = self.train_ND.shape[1]
        self.parameters = count_parameters(DictionaryMoE(self.options))
        if not k <= self._num_atoms <= len(self.train_ND):
            raise ValueError(
                f"base.model: its {self.parameters} parameters make {self._num_atoms} atoms of one dictionary, "
                f"expected {k} (sparsities) to {len(self.train_ND)} (training rows); change atoms or experts"
            )

    def fit(self, method: str) -> Fitted:
        """Fits the method of that name in `METHODS`."""
        return getattr(self, f"_{method}")()

    @cached_property
    def _mixture_model(self) -> Trained:
        return self._trained(self.options, self.run.objective)

    @cached_property
    def _topk_model(self) -> Trained:
        peer = single_dictionaries_of(DictionaryMoE(self.options), self.k)["topk_equal_parameters"]
        return self._trained(peer, replace(self.run.objective, kind="mixture", contrastive=0.0, balance=0.0))

    def _trained(self, options: DictionaryMoEOptions, objective: ObjectiveOptions) -> Trained:
        with tempfile.TemporaryDirectory() as folder:
            return train(self.run, options, objective, self.rows, self.runtime, Path(folder), None)

    def _mixture(self) -> Fitted:
        return self._own_codes(self._mixture_model)

    def _topk(self) -> Fitted:
        return self._own_codes(self._topk_model)

    def _own_codes(self, trained: Trained) -> Fitted:
        def code(x_ND: np.ndarray) -> tuple[np.ndarray, float]:
            rows = torch.from_numpy(x_ND).float().to(self.runtime.device)
            xhat_ND, active_N = reconstruct(trained.model, rows)
            return xhat_ND.double().cpu().numpy(), float(active_N.double().mean())

        return Fitted(code, _parameters(trained.model), trained.seconds)

    def _mixture_omp(self) -> Fitted:
        return self._pursued(self._mixture_model)

    def _topk_omp(self) -> Fitted:
        return self._pursued(self._topk_model)

    def _pursued(self, trained: Trained) -> Fitted:
        """The learned dictionaries with the codes of matching pursuit: what the encoders leave."""
        experts = trained.model.experts
        atoms_EMD, center_E1D = experts.atoms.detach().mT, experts.centers.detach()[:, None]

        def code(x_ND: np.ndarray) -> tuple[np.ndarray, float]:
            x_END = torch.from_numpy(x_ND).to(center_E1D) - center_E1D
            codes = [
                orthogonal_matching_pursuit(*pair, self.k) for pair in zip(x_END, atoms_EMD, strict=True)
            ]
            codes_ENM = torch.stack(codes)
            residual_END = x_END - codes_ENM @ atoms_EMD
            best_N = residual_END.square().sum(-1).argmin(0)
            index_N = torch.arange(len(best_N), device=best_N.device)
            active = codes_ENM[best_N, index_N].count_nonzero(-1).double().mean()
            xhat_ND = x_ND - residual_END[best_N, index_N].double().cpu().numpy()
            return xhat_ND, float(active)

        return Fitted(code, _parameters(trained.model), trained.seconds)

    @property
    def _num_atoms(self) -> int:
        """Atoms of a single dictionary with a center that has the mixture's number of parameters."""
        return (self.parameters - self.dim) // self.dim

    @cached_property
    def _ksvd(self) -> tuple[KSVD, float]:
        return self._timed(KSVD(**self._estimator_options))

    @property
    def _estimator_options(self) -> dict[str, Any]:
        return {
            "n_components": self._num_atoms,
            "k": self.k,
            "max_iter": self.rounds,
            "dtype": "float32",
            "device": str(self.runtime.device),
            "random_state": self.run.seed,
        }

    def _timed(self, estimator: Any) -> tuple[Any, float]:
        started = time.perf_counter()
        estimator.fit(self.train_ND)
        return estimator, time.perf_counter() - started

    def _ksvd_omp(self) -> Fitted:
        return self._dictionary(*self._ksvd)

    def _online_omp(self) -> Fitted:
        return self._dictionary(*self._timed(OnlineDictionaryLearning(**self._estimator_options)))

    def _dictionary(
        self, estimator: Any, seconds: float, encode: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Fitted:
        def code(x_ND: np.ndarray) -> tuple[np.ndarray, float]:
            codes_NM = (encode or estimator.transform)(x_ND)
            return estimator.inverse_transform(codes_NM), float((codes_NM != 0).sum(1).mean())

        return Fitted(code, estimator.components_.size + estimator.mean_.size, seconds)

    def _centered(self, x_ND: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x_ND - self._ksvd[0].mean_).float().to(self.runtime.device)

    def _ksvd_iht(self) -> Fitted:
        atoms = torch.from_numpy(self._ksvd[0].components_).float()

        def encode(x_ND: np.ndarray) -> np.ndarray:
            x = self._centered(x_ND)
            codes = iterative_hard_thresholding(
                x, atoms, self.k, normalized=True, num_steps=100, tolerance=1e-3
            )
            return least_squares_codes(x, atoms, codes).double().cpu().numpy()

        return self._dictionary(*self._ksvd, encode)

    def _ksvd_fista(self) -> Fitted:
        atoms = torch.from_numpy(self._ksvd[0].components_).float().to(self.runtime.device)

        def lasso(x: torch.Tensor, share: float) -> torch.Tensor:
            penalty = share * (x @ atoms.mT).abs().amax(1)
            return fista(x, atoms, penalty, num_steps=200, tolerance=1e-4).codes

        def encode(x_ND: np.ndarray) -> np.ndarray:
            x = self._centered(x_ND)
            codes = lasso(x, share)
            kth = codes.abs().topk(self.k, dim=1).values[:, -1:]
            return least_squares_codes(x, atoms, codes * (codes.abs() >= kth)).double().cpu().numpy()

        share = _penalty_share(lasso, self._centered(self.train_ND[:256]), self.k)
        return self._dictionary(*self._ksvd, encode)

    def _pca(self) -> Fitted:
        return self._subspaces(np.zeros(len(self.train_ND), np.int64), nearest_center=True)

    def _kmeans_pca(self) -> Fitted:
        """As many clusters as parameters allow, each with k + 1 vectors."""
        from sklearn.cluster import KMeans

        clusters = max(1, min(self.parameters // ((self.k + 1) * self.dim), len(self.train_ND) // 2))
        started = time.perf_counter()
        labels = KMeans(clusters, n_init=1, random_state=self.run.seed).fit_predict(self.train_ND)
        return self._subspaces(labels, True, time.perf_counter() - started)

    def _subspace_pca(self) -> Fitted:
        """As many clusters as experts, the start of the mixture; a row goes to the subspace nearest to it."""
        started = time.perf_counter()
        used, labels = subspace_clusters(self.train_ND, len(self.options.sparsities), seed=self.run.seed)
        every = np.full(len(self.train_ND), -1)
        every[used] = labels
        return self._subspaces(every, False, time.perf_counter() - started)

    def _subspaces(self, labels_N: np.ndarray, nearest_center: bool, seconds: float = 0.0) -> Fitted:
        """A PCA of k components of each cluster; label -1: of none."""
        started = time.perf_counter()
        clusters = int(labels_N.max()) + 1
        centers = np.zeros((clusters, self.dim))
        bases = np.zeros((clusters, self.k, self.dim))
        for c in range(clusters):
            own = self.train_ND[labels_N == c]
            centers[c] = own.mean(0)
            right = np.linalg.svd(own - centers[c], full_matrices=False)[2][: min(self.k, len(own) - 1)]
            bases[c, : len(right)] = right
        seconds += time.perf_counter() - started

        def code(x_ND: np.ndarray) -> tuple[np.ndarray, float]:
            centered_CND = x_ND[None] - centers[:, None]
            xhat_CND = centers[:, None] + (centered_CND @ bases.swapaxes(1, 2)) @ bases
            distance = centered_CND if nearest_center else x_ND[None] - xhat_CND
            chosen_N = (distance**2).sum(-1).argmin(0)
            active = (np.abs(bases).sum(-1) > 0).sum(-1)[chosen_N].mean()
            return xhat_CND[chosen_N, np.arange(len(x_ND))], float(active)

        return Fitted(code, centers.size + bases.size, seconds)


def _parameters(model: DictionaryMoE) -> int:
    """Of a mixture with its gate, or of a single dictionary, which needs none."""
    single = len(model.options.sparsities) == 1
    return count_parameters(model.experts if single else model)


def _penalty_share(lasso: Callable[[torch.Tensor, float], torch.Tensor], x: torch.Tensor, k: int) -> float:
    """The largest penalty, as a share of the one that makes a code 0, at which 95 % of the codes have k atoms."""
    low, high = 1e-4, 1.0
    for _ in range(10):
        middle = (low * high) ** 0.5
        enough = ((lasso(x, middle) != 0).sum(1) >= k).double().mean() >= 0.95
        low, high = (middle, high) if enough else (low, middle)
    return low


def trial(setting: Setting, method: str, test_ND: np.ndarray) -> dict[str, Any]:
    """Fits a method and scores it on held-out rows."""
    fitted = setting.fit(method)
    fitted.code(test_ND[:8])
    started = time.perf_counter()
    xhat_ND, active = fitted.code(test_ND)
    seconds = time.perf_counter() - started
    fvu = analysis.fvu(test_ND, xhat_ND, setting.train_ND.mean(0))
    return {
        "seed": setting.run.seed,
        "k": setting.k,
        "method": method,
        "fvu": fvu,
        "r2": 1 - fvu,
        "active_atoms": active,
        "parameters": fitted.parameters,
        "fit_seconds": fitted.seconds,
        "code_microseconds": seconds / len(test_ND) * 1e6,
    }


def execute(
    run: CompareDictionariesRun,
    folder: Path,
    *,
    resume: bool,
    command: str,
    before_training: Callable[[], object] = lambda: None,
) -> Path:
    """Fits and scores every method for every seed and k; returns the run folder.

    Raises:
        DataError: the rows cannot be used.
        ValueError: options that do not fit the rows, or more than one process.
    """
    with Runtime.create(run.base.device) as runtime:
        if runtime.world_size > 1:
            raise ValueError(f"{run.recipe}: expected one process, got {runtime.world_size}")
        log: TrialLog | None = None
        for seed in run.seeds:
            base = replace(run.base, seed=seed)
            data = prepare(base, folder)
            rows = {part: data.rows(part) for part in ("train", "validation", "test")}
            settings = [Setting(base, k, run.rounds, rows, runtime) for k in run.sparsities]
            if log is None:
                before_training()
                log = TrialLog.open(folder, resume)
            while settings:
                setting = settings.pop(0)  # and what it has fitted goes with it
                k = setting.k
                for method in run.methods:
                    if log.find(seed=seed, k=k, method=method) is None:
                        log.add(trial(setting, method, rows["test"].x.double().numpy()))
        assert log is not None  # there is at least one seed
        source = data.table.source
        summary = list(summarize(run, log.rows))
        results = {
            "recipe": run.recipe,
            "about": f"{source}: {len(data.split.train)} training and {len(data.split.test)} held-out rows, "
            f"reduced to {run.base.model.input_dim} features; {len(run.seeds)} paired seeds, one split each.",
            "command": command,
            "environment": environment(runtime.device),
            "configuration": asdict(run),
            "seeds": list(run.seeds),
            "trials": log.rows,
            "summary": summary,
        }
    write_trials(folder, results, tables(run, summary), answer(summary), CAVEATS)
    return folder
