from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from python_tests.recipes.small_texts import SETTINGS, save_small_texts, small_comparison
from stratcore.cli import train
from stratcore.data.classification import audit_split
from stratcore.recipes.compare_classifiers_artefact import QUEUE, domain_majority, first_rows, random_split
from stratcore.recipes.compare_classifiers_data import load_material


def test_the_source_documents_procedure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_small_texts(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = ["compare_classifiers", *SETTINGS, "seeds=[0]", "--reproduce-artefact", "--output", "run"]
    assert train(command) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    trials = results["trials"]
    assert len(trials) == 2 * len(QUEUE) ** 2
    for shared in (True, False):
        pairs = {(row["arm"], row["place"]) for row in trials if row["shared"] == shared}
        assert len(pairs) == len(QUEUE) ** 2  # every arm in every place once
    assert {row["epochs_of_encoder"] for row in trials if row["shared"]} == {3, 6, 9, 12}
    assert {row["epochs_of_encoder"] for row in trials if not row["shared"]} == {3}
    fresh = {(row["arm"], row["accuracy"]) for row in trials if not row["shared"]}
    assert len(fresh) == len(QUEUE)  # a fresh encoder does not know its place
    assert "The audit would have refused these rows: " in capsys.readouterr().out
    assert results["accuracy_of_domain_rule"] == pytest.approx(0.75, abs=0.15)
    assert train(["dictionary_moe", "--reproduce-artefact", "--output", "other"]) == 2
    # A run that stopped within a queue goes on and ends the same.
    log = tmp_path / "run/trials.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-6]))
    assert train([*command, "--resume"]) == 0
    assert log.read_text() == "".join(lines)


def test_a4_a_detector_of_domains_scores_three_quarters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the domains come with one label: the rest at chance makes 75 %."""
    save_small_texts(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    more = [
        {**row, "domain": f"{row['domain']} {copy}", "text": f"{copy} {row['text']}"}
        for row in rows
        for copy in (0, 1)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    monkeypatch.chdir(tmp_path)
    table = load_material(small_comparison(), tmp_path).table
    chosen = first_rows(table)
    assert len(chosen) == 400 and len(table.domain_names) == 4
    labels = [np.unique(table.label[chosen][table.domain[chosen] == d]).tolist() for d in range(4)]
    assert sorted(map(len, labels)) == [1, 1, 2, 2] and [0] in labels and [1] in labels
    split = random_split(chosen, table)
    assert [len(rows) for _, rows in split.parts()] == [240, 80, 80]
    assert domain_majority(table, split) == pytest.approx(0.75, abs=0.1)
    warnings = audit_split(table, split)["warnings"]
    assert any("label and domain share 0." in line for line in warnings)
