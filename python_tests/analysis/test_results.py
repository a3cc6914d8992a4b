import copy
import json

import numpy as np
import pytest

from stratcore.analysis import to_plain, validate_results, write_results


@pytest.fixture
def results(run):
    return copy.deepcopy(to_plain(run[0]))


def _at(results, path):
    *parents, last = path
    for key in parents:
        results = results[key]
    return results, last


def test_a_whole_run_is_valid_with_dataclasses_and_as_json(run, results):
    validate_results(run[0])
    validate_results(json.loads(json.dumps(results)))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("seeds",), "seeds"),
        (("gate", "statistics", "load"), "gate.statistics.load"),
        (
            ("reconstruction", "baselines", 1, "difference", "low"),
            "reconstruction.baselines[1].difference.low",
        ),
        (("agreement", "within_length"), "agreement.within_length"),
        (("dimensions", "per_stratum", 2, "effective_rank"), "dimensions.per_stratum[2].effective_rank"),
    ],
)
def test_missing_key_is_named(results, path, name):
    parent, last = _at(results, path)
    del parent[last]
    with pytest.raises(ValueError, match="missing key") as raised:
        validate_results(results)
    assert repr(name) in str(raised.value)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("seeds",), "0", "seeds: expected a list, got str"),
        (("training", "steps"), 1.5, "training.steps: expected an integer, got float"),
        (("reconstruction", "baselines", 0, "role"), "mine", "expected one of pca_equal_dimension"),
        (("gate", "statistics", "load_cv"), "high", "gate.statistics.load_cv: expected a number, got str"),
        (("experts", "coherence"), [0.1], "experts.coherence: expected 7 entries .* got 1"),
        (("schema_version",), 1, "schema_version: expected 2, got 1"),
    ],
)
def test_ill_typed_value_is_named(results, path, value, words):
    parent, last = _at(results, path)
    parent[last] = value
    with pytest.raises(ValueError, match=words):
        validate_results(results)


def test_unknown_domains_and_lengths_are_none(results):
    results["agreement"]["within_length"] = None
    validate_results(results)
    results["agreement"] = None
    validate_results(results)


def test_written_file_reads_back_and_holds_no_nan(run, tmp_path):
    results = dict(run[0])
    results["training"] = {"steps": 1, "seconds": np.float32(np.inf), "final_losses": {"loss": np.nan}}
    path = write_results(tmp_path / "results.json", results)
    read = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"not JSON: {word}"))
    assert read["training"] == {"steps": 1, "seconds": None, "final_losses": {"loss": None}}
    assert read["gate"]["statistics"]["num_experts"] == 7
    assert sorted(file.name for file in tmp_path.iterdir()) == ["results.json"]


def test_invalid_results_leave_the_old_file(run, tmp_path):
    path = write_results(tmp_path / "results.json", run[0])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="missing key 'gate'"):
        write_results(path, {key: value for key, value in run[0].items() if key != "gate"})
    assert path.read_bytes() == before


def test_failed_rename_leaves_the_old_file_and_no_part(run, tmp_path, monkeypatch):
    path = write_results(tmp_path / "results.json", run[0])
    before = path.read_bytes()

    def refuse(self, target):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_results(path, run[0])
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_plain_rejects_what_json_cannot_hold():
    with pytest.raises(TypeError, match="set has no place in JSON"):
        to_plain({"a": {1, 2}})
