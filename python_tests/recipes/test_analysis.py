"""Options of an analysis; what the command line refuses is in cli/test_analysis.py."""

from __future__ import annotations

import pytest

from stratcore.recipes import ANALYSES
from stratcore.recipes.analysis import AnalysisRows, AnalysisRun


@pytest.mark.parametrize("name", ANALYSES)
def test_each_workflow_names_itself(name):
    run = ANALYSES[name]()
    assert run.recipe == name and run == ANALYSES[name]()
    assert ANALYSES[name].__doc__


def test_perplexities_come_from_texts_or_a_file():
    AnalysisRun(perplexity="values.npy")
    AnalysisRun(perplexity="gpt2", data=AnalysisRows(texts=("a.txt",), encoder="bert"))
    with pytest.raises(ValueError, match="perplexity: expected a .npy file"):
        AnalysisRun(perplexity="gpt2")
