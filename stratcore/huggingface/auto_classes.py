"""The models of this package, known to the auto classes of transformers."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForSequenceClassification


def register_stratified_classifier() -> None:
    """AutoConfig and AutoModelForSequenceClassification know `StratifiedClassifier`; again as often as wished.

        register_stratified_classifier()
        AutoModelForSequenceClassification.from_pretrained("folder that save_pretrained wrote")

    No code of a repository is run: the class is this package's own.
    """
    from stratcore.models import StratifiedClassifier, StratifiedClassifierConfig

    AutoConfig.register(StratifiedClassifierConfig.model_type, StratifiedClassifierConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(
        StratifiedClassifierConfig, StratifiedClassifier, exist_ok=True
    )
