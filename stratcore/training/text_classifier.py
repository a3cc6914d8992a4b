"""A stratified classifier of texts with scikit-learn's face. Legend: N texts, C labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from stratcore.data.token_rows import TokenRows
from stratcore.models import StratifiedClassifier
from stratcore.models.text_prediction import TextPrediction, encode_texts, pad_token, token_limit
from stratcore.training.batch_stream import BatchStream
from stratcore.training.distributed import Runtime
from stratcore.training.finite_guard import NonFiniteError
from stratcore.training.optimization import Optimization
from stratcore.training.optimizer import OptimizerOptions
from stratcore.training.random_state import (
    deterministic_algorithms,
    preserved_random_state,
    seed_everything,
)
from stratcore.training.task import Stage
from stratcore.training.tasks.text_classification import TextClassificationTask


class StratifiedTextClassifier(ClassifierMixin, BaseEstimator):
    """Fine-tunes a `StratifiedClassifier` on texts and labels, with AdamW and a linear fall after a warm-up of 6 %.

        StratifiedTextClassifier("distilbert-base-uncased", variant="stratified_moe").fit(texts, labels)

    Args:
        encoder: local folder, name on the hub, or a model (of which a copy is trained).
        tokenizer: None: the one beside the encoder.
        variant: see `StratifiedClassifierConfig`.
        options: further options of `StratifiedClassifierConfig`, such as {"num_strata": 4}.
        epochs: passes over the texts.
        batch_size: texts a step; the last, smaller batch of an epoch is left out.
        learning_rate: the highest one.
        max_length: tokens of a text, the rest is cut off.
        device: 'auto', 'cpu' or 'cuda'.
        random_state: seed of new weights, of the order of texts and of dropout.

    Attributes:
        classes_: [C] labels, sorted.
        model_: the trained `StratifiedClassifier`, for `save_pretrained`.
        loss_curve_: mean training loss of each epoch.

    Determinism: equal seeds give equal bits on one machine; the process's own generators are left as they were.
    """

    def __init__(
        self,
        encoder: Any = "distilbert-base-uncased",
        *,
        tokenizer: Any = None,
        variant: str = "stratified_moe",
        options: Mapping[str, Any] | None = None,
        epochs: int = 3,
        batch_size: int = 16,
        learning_rate: float = 2e-5,
        max_length: int = 128,
        device: str = "auto",
        random_state: int = 0,
    ) -> None:
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.variant = variant
        self.options = options
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_length = max_length
        self.device = device
        self.random_state = random_state

    def fit(self, texts: Sequence[str], labels: Any) -> StratifiedTextClassifier:
        """Trains a new model.

        Args:
            texts: N texts, none empty.
            labels: N, of any kind that can be sorted; at least two different ones.

        Raises:
            ValueError: texts and labels that do not fit, no tokenizer, or an option out of its range.
        """
        labels = np.asarray(labels)
        if labels.shape != (len(texts),):
            raise ValueError(f"labels: expected one for each of {len(texts)} texts, got shape {labels.shape}")
        self.classes_, label_N = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"labels: expected at least 2 different ones, got {self.classes_.tolist()}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        runtime = Runtime.create(self.device)
        with preserved_random_state(runtime.device):
            model = self._new_model()
            self.loss_curve_ = self._train(model, self._tokenize(model, texts, label_N), runtime)
        self.model_ = model.eval()
        return self

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Labels [N]."""
        found = self._read(texts)
        return self.classes_[found.indices]

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities [N, C], columns as `classes_`."""
        return self._read(texts).probabilities

    def _read(self, texts: Sequence[str]) -> TextPrediction:
        check_is_fitted(self, "model_")
        return self.model_.predict(texts, max_length=self._length(self.model_))

    def _length(self, model: StratifiedClassifier) -> int:
        return min(self.max_length, token_limit(model, model.tokenizer))

    def _new_model(self) -> StratifiedClassifier:
        encoder = str(self.encoder) if isinstance(self.encoder, Path) else self.encoder
        names = {index: str(name) for index, name in enumerate(self.classes_.tolist())}
        model = StratifiedClassifier.from_encoder(
            encoder,
            tokenizer=self.tokenizer,
            seed=self.random_state,
            variant=self.variant,
            id2label=names,
            label2id={name: index for index, name in names.items()},
            **(self.options or {}),
        )
        if model.tokenizer is None:
            raise ValueError("tokenizer: expected one, as none lies beside the encoder")
        return model

    def _tokenize(self, model: StratifiedClassifier, texts: Sequence[str], label_N: np.ndarray) -> TokenRows:
        tokens = encode_texts(texts, model.tokenizer, self._length(model))
        return TokenRows(
            ids=np.concatenate([np.asarray(row, np.int64) for row in tokens]),
            types=None,
            offsets=np.concatenate([[0], np.cumsum([len(row) for row in tokens])]),
            label=label_N.astype(np.int64),
            domain=np.zeros(len(tokens), np.int64),
            pad=pad_token(model, model.tokenizer),
        )

    def _train(self, model: StratifiedClassifier, rows: TokenRows, runtime: Runtime) -> list[float]:
        batch_size = min(self.batch_size, rows.num_rows)
        steps_per_epoch = rows.num_rows // batch_size
        steps = self.epochs * steps_per_epoch
        stage = Stage(
            steps=steps,
            seed=self.random_state,
            optimizer=OptimizerOptions(
                lr=self.learning_rate,
                weight_decay=0.01,
                schedule="linear",
                warmup_steps=max(1, round(0.06 * steps)),
                clip_norm=1.0,
            ),
        )
        task = TextClassificationTask(
            model, rows, rows, runtime, batch_size=batch_size, seed=self.random_state
        )
        curve = []
        with deterministic_algorithms(stage.numerics.deterministic):
            seed_everything(self.random_state, runtime.rank)
            optimization, stream = Optimization(task, stage, runtime), BatchStream(task)
            model.train()
            with torch.enable_grad():
                for step in range(1, steps + 1):
                    optimization.run(stream, step - 1)
                    if optimization.guard.exhausted(step):
                        raise NonFiniteError(f"step {step}: {optimization.diagnose()}")
                    if step % steps_per_epoch == 0:
                        curve.append(optimization.read_metrics()["loss"])
        return curve
