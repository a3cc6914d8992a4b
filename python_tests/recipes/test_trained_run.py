"""A run folder loaded for inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stratcore.recipes.trained_run import load_trained_run, load_weights
from stratcore.training import open_checkpoint


def test_the_model_is_that_of_the_best_checkpoint(trained_folder):
    trained = load_trained_run(trained_folder)
    assert trained.run.model.sparsities == (2, 4) and not trained.model.training
    saved = open_checkpoint(trained.checkpoint).read("model", torch.device("cpu"))
    for name, tensor in trained.model.state_dict().items():
        torch.testing.assert_close(tensor, saved[name], rtol=0, atol=0)
    rows = trained.data.rows("test")
    with torch.no_grad():
        output = trained.model(rows.x)
    assert output.probabilities.shape == (len(rows.x), 2)
    np.testing.assert_allclose(output.probabilities.sum(-1), 1, atol=1e-6)


def test_weights_replace_what_was_there(trained_folder):
    trained = load_trained_run(trained_folder)
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter.add_(1.0)
    load_weights(trained.model.train(), trained.checkpoint, torch.device("cpu"), averaged=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.model.state_dict().items())
    assert not trained.model.training


def test_folders_that_are_no_trained_run(tmp_path, trained_folder):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("recipe: compare_dictionaries")
    with pytest.raises(ValueError, match="trains one dictionary mixture, got compare_dictionaries"):
        load_trained_run(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="holds no config.yaml"):
        load_trained_run(tmp_path)
    (tmp_path / "config.yaml").write_bytes((trained_folder / "config.yaml").read_bytes())
    with pytest.raises(FileNotFoundError, match="no checkpoint-best and no checkpoint-last; was it trained"):
        load_trained_run(tmp_path)
