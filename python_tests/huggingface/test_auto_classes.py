"""Auto classes of transformers find the models of this package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

from python_tests.models.stratified_classifier_cases import batch, classifier, moved, tokenizer
from stratcore.huggingface import register_stratified_classifier
from stratcore.models import StratifiedClassifier, StratifiedClassifierConfig


def test_auto_classes_load_a_classifier_bitwise(tmp_path: Path) -> None:
    register_stratified_classifier()
    register_stratified_classifier()
    model = moved(classifier("bert"))
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is StratifiedClassifierConfig
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is StratifiedClassifier and not loaded.training
    inputs = batch()
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_auto_classes_make_a_new_one() -> None:
    register_stratified_classifier()
    made = AutoModelForSequenceClassification.from_config(classifier("gpt2").config)
    assert type(made) is StratifiedClassifier
    assert made(**batch()).logits.shape == (3, 2)


def test_pipeline_and_trainer_of_transformers(tmp_path: Path) -> None:
    register_stratified_classifier()
    model, words = moved(classifier("bert")), tokenizer()
    texts = ["a good film", "bad", "the very very poor day"]
    expected = model.predict(texts, tokenizer=words).probabilities
    found = pipeline("text-classification", model=model, tokenizer=words, device="cpu")(texts, top_k=None)
    scores = [[row["score"] for row in sorted(rows, key=lambda row: row["label"])] for rows in found]
    assert np.abs(np.array(scores) - expected).max() <= 1e-5

    options = {"use_cpu": True, "report_to": [], "per_device_eval_batch_size": 2, "disable_tqdm": True}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), **options),
        data_collator=DataCollatorWithPadding(words),
    )
    logits = trainer.predict([{"input_ids": words(text)["input_ids"]} for text in texts]).predictions
    assert np.abs(torch.from_numpy(logits).softmax(-1).numpy() - expected).max() <= 1e-5


def test_importing_does_no_work() -> None:
    code = (
        "import sys, stratcore.models\n"
        "assert 'transformers' not in sys.modules\n"
        "import stratcore.huggingface\n"
        "from transformers.models.auto.configuration_auto import CONFIG_MAPPING\n"
        "assert 'stratified_classifier' not in CONFIG_MAPPING\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
