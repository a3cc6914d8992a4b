from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stratcore.recipes import perplexity_suite


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"models": ("a", "a")}, "models: expected different names"),
        ({"sets": ("a", "a")}, "sets: expected different names"),
        ({"rows": 0}, "rows: expected a number >= 1, got 0"),
        ({"window": 1}, "window: expected a number >= 2, got 1"),
        ({"stride": 0}, "stride: expected a number >= 1, got 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(perplexity_suite(), **settings)
