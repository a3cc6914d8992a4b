"""Options of an analysis; what the command line refuses is in cli/test_analysis.py."""

from __future__ import annotations

from typing import get_args

import pytest

from stratcore.analysis.strata.fit import StrataMethod
from stratcore.recipes import ANALYSES
from stratcore.recipes.analysis import AnalysisRows, AnalysisRun, Clustering
from stratcore.recipes.settings import UsageError, load_run


def test_strata_by_any_clustering_that_there_is():
    assert (*get_args(Clustering), "given") == get_args(StrataMethod)
    with pytest.raises(UsageError, match=r"strata\.method"):
        load_run(ANALYSES, None, None, ["strata.method=kmean"])


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
