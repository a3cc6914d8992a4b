"""The scan of a file of rows and its exit code."""

from __future__ import annotations

import numpy as np
import pytest

from stratcore.cli import analyze


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    healthy = rng.normal(size=(400, 24))
    np.save("healthy.npy", healthy.astype(np.float32))
    np.save("point.npy", (1 + 1e-3 * healthy).astype(np.float32))
    np.save("flat.npy", (healthy[:, :2] @ rng.normal(size=(2, 24))).astype(np.float32))
    np.save("anchors.npy", rng.normal(size=(8, 24)).astype(np.float32))


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("words", "code", "last"),
    [
        (["healthy.npy"], 0, "no sign of collapse"),
        (["healthy.npy", "--anchors", "anchors.npy"], 0, "no sign of collapse"),
        (["healthy.npy", "--before", "healthy.npy"], 0, "no sign of collapse"),
        (["point.npy"], 3, "collapsed: "),
        (["flat.npy", "--before", "healthy.npy"], 3, "collapsed: "),
    ],
)
def test_the_exit_code_is_the_verdict(words, code, last, capfd):
    assert analyze(["scan", *words]) == code
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("400 rows of 24 features were scanned with seed 0")
    assert lines[-1].startswith(last) and len(lines) > 15


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.npy"], "none.npy: no such file"),
        ([], "the following arguments are required: FILE"),
        (["healthy.npy", "--befor", "x"], "unrecognized arguments"),
    ],
)
def test_mistakes_are_one_line(words, message, capfd):
    assert analyze(["scan", *words]) == 2
    stdout, stderr = capfd.readouterr()
    assert message in stderr and stderr.count("\n") == 1 and stdout == ""
