"""A made-up run with real statistics: six overlapping domains in 64 dimensions, a soft gate, seven experts.

Nothing is trained. The gate is softmax of distances to KMeans centers, each expert the principal axes of its rows,
so every number that the report shows was computed by the code it will show in earnest.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from stratcore import analysis
from stratcore.analysis.plots import View
from stratcore.analysis.resampling import Resampling

DOMAINS = ("encyclopedia", "film reviews", "forum questions", "news", "product reviews", "tweets")
LEVELS = (8, 12, 16, 20, 24, 28, 32)
FEW = Resampling(num_resamples=200)


def _rows(rng, num_rows):
    """Domains as noisy subspaces of unlike dimension around centers that length pulls along one axis."""
    domain_N = rng.integers(len(DOMAINS), size=num_rows)
    fixed = np.random.default_rng(7)
    centers = 0.22 * fixed.standard_normal((6, 96))
    bases = fixed.standard_normal((6, 40, 96)) / np.sqrt(96)
    latent = rng.standard_normal((num_rows, 40)) * (np.arange(40) < (6 + 6 * domain_N)[:, None])
    tokens_N = np.exp(3 + 0.25 * domain_N + 0.5 * rng.standard_normal(num_rows)).round()
    length = np.outer(np.log(tokens_N) - 3.6, fixed.standard_normal(96)) * 0.5
    x_ND = centers[domain_N] + np.einsum("nr,nrd->nd", latent, bases[domain_N]) + length
    return x_ND + 0.3 * rng.standard_normal((num_rows, 96)), np.array(DOMAINS)[domain_N], tokens_N


def _model(train, test):
    """Gate probabilities, assignments, reconstructions and dictionaries of the made-up mixture."""
    kmeans = KMeans(len(LEVELS), n_init=1, random_state=3).fit(train)
    gate = softmax(-(kmeans.transform(test) ** 2) / 3, axis=1)
    assign = gate.argmax(axis=1)
    xhat, dictionaries = np.empty_like(test), []
    for expert, level in enumerate(LEVELS):
        own = train[kmeans.labels_ == expert]
        pca = analysis.fit_pca(own, level)
        xhat[assign == expert] = pca.inverse_transform(pca.transform(test[assign == expert]))
        atoms = np.random.default_rng(expert).standard_normal((256, level)) @ pca.components_
        dictionaries.append(atoms.T / np.linalg.norm(atoms, axis=1))
    return gate, assign, xhat, np.stack(dictionaries)


def _scores(pca, test, xhat, pca_test, center, **extra):
    original = pca.inverse_transform(xhat)
    return {
        "pca_space": analysis.score_reconstruction(pca_test, xhat, center, FEW),
        "original_space": analysis.score_reconstruction(test, original, pca.mean_, FEW),
        **extra,
    }


def _reconstruction(pca, train, test, xhat, assign):
    z_train, z_test = pca.transform(train), pca.transform(test)
    center = z_train.mean(axis=0)
    noise = np.random.default_rng(5).standard_normal(z_test.shape)
    topk = xhat + 0.25 * noise
    wide = xhat + 0.05 * noise
    by_pca = analysis.pca_reconstruction(z_train, z_test, 20)
    peers = (
        ("PCA, 20 components", "pca_equal_dimension", by_pca, 1280, 2560.0, 20.0),
        ("TopK, equal FLOPs", "topk_equal_flops", topk, 16448, 4.1e4, 20.0),
        ("TopK, equal parameters", "topk_equal_parameters", wide, 115136, 2.4e5, 20.0),
    )
    experts = []
    for expert, level in enumerate(LEVELS):
        own = assign == expert
        scores = _scores(pca, test[own], xhat[own], z_test[own], center)
        experts.append({"expert": expert, "sparsity": level, **scores})
    return {
        "overall": _scores(pca, test, xhat, z_test, center) | _size("mixture", 123904, 4.0e4, 19.6),
        "per_expert": experts,
        "baselines": [
            _scores(pca, test, other, z_test, center, role=role)
            | _size(name, parameters, flops, atoms)
            | {"difference": analysis.fvu_difference(z_test, xhat, other, center, FEW)}
            for name, role, other, parameters, flops, atoms in peers
        ],
    }


def _size(name, parameters, flops, atoms):
    return {"name": name, "parameters": parameters, "active_flops": flops, "mean_active_atoms": atoms}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Threads of BLAS and OpenMP cost more than they give at these sizes."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def run(one_thread):
    """(results, view, metrics) of the made-up run."""
    rng = np.random.default_rng(0)
    (train, train_domain, _), (test, domain, tokens) = _rows(rng, 1800), _rows(rng, 900)
    pca = analysis.fit_pca(train, 64)
    z_train, z_test = pca.transform(train), pca.transform(test)
    gate, assign, xhat, dictionaries = _model(z_train, z_test)
    agreement = {
        "overall": analysis.agreement(assign, domain, FEW),
        "within_length": analysis.within_bins(assign, domain, tokens, 5, FEW),
        "baselines": analysis.cluster_baselines(z_train, z_test, domain, 7, seeds=(0, 1)),
    }
    results = {
        **_provenance(),
        "data": _data(train_domain, domain, tokens),
        "pca": analysis.pca_summary(pca, train, test),
        "reconstruction": _reconstruction(pca, train, test, xhat, assign),
        **_gate(gate, assign, domain),
        "agreement": agreement,
        **_strata(z_test, gate, assign),
        "experts": _experts(dictionaries),
    }
    shares = pca.explained_variance_ratio_[:3]
    view = View(points=z_test[:, :3], domains=domain, experts=assign, variance_shares=shares)
    return results, view, _metrics()


def _provenance():
    return {
        "schema_version": 2,
        "recipe": "dictionary_moe",
        "command": "python -m stratcore.train dictionary_moe seed=0 output=runs/demo",
        "environment": {"stratcore": "0.1.0", "torch": "2.13.0", "device": "cpu", "threads": 2},
        "configuration": {"model": {"num_experts": 7, "sparsities": list(LEVELS)}, "seed": 0, "steps": 4000},
        "seeds": [0],
        "training": {
            "steps": 4000,
            "seconds": 63.4,
            "final_losses": {"train/loss": 0.412, "test/loss": 0.437, "train/coherence": 0.0131},
        },
    }


def _data(train_domain, domain, tokens):
    domains = [
        {
            "name": name,
            "num_train": int((train_domain == name).sum()),
            "num_test": int((domain == name).sum()),
            "mean_tokens": tokens[domain == name].mean(),
        }
        for name in sorted(DOMAINS)
    ]
    sizes = {"num_train": len(train_domain), "num_test": len(domain), "num_features": 96}
    return {"name": "made-up embeddings", **sizes, "domains": domains}


def _gate(gate, assign, domain):
    by_domain, names = analysis.mean_gate(gate, domain)
    histogram = analysis.assignment_histogram(assign, domain, len(LEVELS))
    return {
        "gate": {"statistics": analysis.gate_statistics(gate), "domains": names, "mean_by_domain": by_domain},
        "assignment": {
            "rule": "the expert of the largest gate probability",
            "domains": histogram.groups,
            "counts": histogram.counts,
            "shares": histogram.shares,
            "purity": analysis.purity(histogram.counts),
            "concentration": analysis.concentration(histogram.counts),
        },
    }


def _strata(z_test, gate, assign):
    strata = np.array([f"E{expert}" for expert in assign])
    whole = np.full(len(z_test), "all rows")
    return {
        "dimensions": {
            "strata": "A stratum is the set of held-out rows of one expert.",
            "variance": 0.75,
            "overall": analysis.stratum_dimensions(z_test, whole, noise_variance=0.09)[0],
            "per_stratum": analysis.stratum_dimensions(z_test, strata, noise_variance=0.09),
        },
        "sparsity": {
            "levels": list(LEVELS),
            "uniform_gate": float(np.mean(LEVELS)),
            "mean": float((gate @ LEVELS).mean()),
            "per_stratum": analysis.weighted_sparsity(gate, LEVELS, strata),
        },
    }


def _experts(dictionaries):
    usage = np.random.default_rng(1).poisson(3.2, size=(7, 256))
    return {
        "num_atoms": 256,
        "distances": analysis.expert_distances(dictionaries, rank=8),
        "coherence": [analysis.mutual_coherence(atoms) for atoms in dictionaries],
        "dead_atoms": analysis.dead_atom_share(usage),
        "dead_atoms_chosen": analysis.dead_atom_share(usage // 2),
    }


@pytest.fixture(scope="session")
def figures(run):
    """All figures of the made-up run by name."""
    return analysis.run_figures(*run)


@pytest.fixture(scope="session")
def pictures(figures, tmp_path_factory):
    """Paths of the same figures as PNG."""
    return analysis.save_figures(tmp_path_factory.mktemp("plots"), figures)


def _metrics():
    step = np.arange(50, 4001, 50)
    noise = np.random.default_rng(2).standard_normal((3, len(step)))
    loss = 0.4 + 30 * np.exp(-step / 300)
    lines = []
    for index, at in enumerate(step.tolist()):
        train = {
            "train/loss": loss[index] * (1 + 0.03 * noise[0, index]),
            "train/balance": 0.02 * np.exp(-at / 900),
        }
        train |= {"train/coherence": 0.013 + 0.2 * np.exp(-at / 500), "train/learning_rate": 1e-3}
        lines.append({"step": at, "seconds": at / 60, **train})
        if at % 250 == 0:
            lines.append({"step": at, "test/loss": loss[index] * 1.06, "test/fvu": loss[index] / 3})
    return lines
