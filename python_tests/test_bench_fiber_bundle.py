"""The bench of the fiber-bundle tests runs every part and says what it found."""

from __future__ import annotations

import json

import pytest

from bench.analysis import bench_fiber_bundle as bench
from stratcore.data import singular
from stratcore.data.manifolds import SMOOTH_NULLS

pytestmark = pytest.mark.usefixtures("single_thread")


def test_every_part(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "CENTERS", 20)
    monkeypatch.setattr(bench, "TORI", (2,))
    monkeypatch.setattr(bench, "SMOOTH_NULLS", {"sphere 7": SMOOTH_NULLS["sphere 7"]})
    monkeypatch.setattr(bench, "SPACES", {"line": lambda seed: singular.line_in_hollow_ball(1080, seed)})
    out = tmp_path / "rows.jsonl"
    assert bench.main(["--seeds", "1", "--small", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["part"] for row in rows] == ["size"] * 4 + ["nulls"] + ["power"] * 4 + ["time"]
    (null,) = [row for row in rows if row["part"] == "nulls"]
    assert null["spacings_rise"] == 0 and null["source_share"] == 1.0
    found = next(row for row in rows if row["part"] == "power" and row["side"] == "rise")
    assert found["points"] == [80, 1000] and found["spacings_holm"][0] > 70
    assert found["spacings_holm"][0] >= 5 * found["reference_all"][0]
    assert all(
        row["command"].startswith("python -m bench.analysis.bench_fiber_bundle --seeds 1") for row in rows
    )
    text = capsys.readouterr().out
    for words in ("flat torus 2", "manifolds with any rejection", "times lenient", "neighbors, s"):
        assert words in text


def test_unknown_part(tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--parts", "size,speed", "--out", str(tmp_path / "rows.jsonl")])
    assert "expected parts of size, nulls, power, time, got speed" in capsys.readouterr().err
