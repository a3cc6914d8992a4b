"""Runs that end where training would begin."""

from __future__ import annotations

import pytest


@pytest.fixture
def only_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that end where training would begin."""
    monkeypatch.setattr(
        "stratcore.recipes.dictionary_moe_run.execute",
        lambda run, folder, *, before_training, **rest: before_training(),
    )
