"""The command line of training: options, precedence, and what it refuses."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from python_tests.recipes.small_run import SMALL, files_of, refusal, small_table
from stratcore.cli import load_run, train
from stratcore.data import save_table
from stratcore.models import DictionaryMoE
from stratcore.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("single_thread")
FLAGS = ["--config", "--help", "--output", "--print_config", "--resume"]
KEYS = [
    *("recipe", "seed", "device", "batch_size", "start", "baselines"),
    *("data", "model", "objective", "stage"),
]


@pytest.fixture
def only_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that end where training would begin."""
    monkeypatch.setattr(
        "stratcore.recipes.dictionary_moe_run.execute",
        lambda run, folder, *, before_training, **rest: before_training(),
    )


def printed(capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert train([*words, "--print_config"]) == 0
    stdout, stderr = capfd.readouterr()
    assert stderr == ""
    return yaml.safe_load(stdout)


# ---- options and precedence


def test_the_options_are_these(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train(["--help"])
    text = capfd.readouterr().out
    assert stop.value.code == 0
    assert sorted(set(re.findall(r"(?m)^\s+(?:-h, )?(--\w+)", text))) == FLAGS
    assert all(re.search(rf"(?m)^  {name} +\S", text) for name in RECIPES)
    assert list(printed(capfd)) == KEYS


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_printed_config_stands_alone(
    recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(printed(capfd, recipe)))
    assert printed(capfd, "--config", str(config)) == printed(capfd, recipe)
    assert load_run(None, config, []) == RECIPES[recipe]()
    assert load_run(recipe, config, []) == RECIPES[recipe]()


def test_recipe_then_file_then_settings_wherever_they_stand(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "half.yaml"
    config.write_text("seed: 5\nbatch_size: 64\nstage:\n  optimizer: {lr: 0.5}\n")
    words = (["dictionary_moe_seed"], ["--config", str(config)], ["seed=7"], ["model.atoms=40"])
    recipe = RECIPES["dictionary_moe_seed"]()
    for order in itertools.permutations(words):
        run = printed(capfd, *itertools.chain(*order))
        assert (run["recipe"], run["seed"], run["batch_size"]) == ("dictionary_moe_seed", 7, 64)
        assert run["model"]["atoms"] == 40 and run["model"]["head"] == list(recipe.model.head)
        assert run["stage"]["optimizer"]["lr"] == 0.5
        assert run["stage"]["steps"] == recipe.stage.steps


def test_settings_are_yaml_and_the_last_one_holds() -> None:
    run = load_run(
        None,
        None,
        ["seed=1", "seed=2", "data.cache=a/b", "stage={accumulate: 3}", "stage.optimizer.lr=1e-4"],
    )
    default = RECIPES["dictionary_moe"]()
    assert run.seed == 2 and run.data.cache == Path("a/b")
    assert run.stage == replace(
        default.stage, accumulate=3, optimizer=replace(default.stage.optimizer, lr=1e-4)
    )


def test_a_part_that_is_off_by_default_is_set_key_by_key() -> None:
    run = load_run(None, None, ["stage.average.decay=0.5", "stage.average.warmup=false"])
    assert (run.stage.average.decay, run.stage.average.warmup) == (0.5, False)
    assert load_run(None, None, ["stage.average.decay=0.5", "stage.average=null"]).stage.average is None


def test_derived_sizes_follow_the_settings() -> None:
    run = load_run(None, None, ["model.sparsities=[2,4,5]", "model.atoms=9", "model.input_dim=6"])
    model = DictionaryMoE(run.model)
    assert model.experts.atoms.shape == (3, 6, 9)
    assert model.gate.keys.shape[0] == 3
    assert model.sparsities.tolist() == [2, 4, 5]


# ---- mistakes in the arguments

MISTAKES = {
    "abbreviated key": ("model.atom=3", "unknown key 'model.atom', did you mean 'model.atoms'?"),
    "misspelt part": ("modle.atoms=3", "unknown key 'modle', did you mean 'model'?"),
    "misspelt below": ("stage.optimizer.lrr=1", "did you mean 'stage.optimizer.lr'?"),
    "key of another part": ("model.lr=1", "unknown key 'model.lr', did you mean 'stage.optimizer.lr'?"),
    "below what is off": ("stage.average.deacy=1", "did you mean 'stage.average.decay'?"),
    "empty key": ("=3", "unknown key ''"),
    "unknown recipe": ("dictionary_mo", "unknown recipe 'dictionary_mo', did you mean 'dictionary_moe'?"),
    "two recipes": ("dictionary_moe dictionary_moe_seed", "expected one recipe"),
    "recipe as a setting": ("recipe=dictionary_moe", "recipe: expected it as a word"),
    "abbreviated flag": ("--conf half.yaml", "unrecognized arguments: --conf half.yaml"),
    "unknown flag": ("--steps 3", "unrecognized arguments: --steps"),
    "flag without its value": ("--config", "argument --config: expected one argument"),
    "type": ("stage.steps=abc", "stage.steps: expected int, got 'abc'"),
    "fraction for a number": ("batch_size=1.5", "batch_size: expected int, got 1.5"),
    "yes for a number": ("stage.steps=true", "stage.steps: expected int, got True"),
    "number for a list": ("model.sparsities=3", "model.sparsities: expected tuple[int, ...], got 3"),
    "short list": ("model.head=[3]", "model.head: expected tuple[int, int] | None, got [3]"),
    "choice": ("start=here", "start: expected one of subspaces, random, got 'here'"),
    "nothing": ("seed=", "seed: expected int, got nothing"),
    "nothing for a name": ("data.source=null", "data.source: expected str, got nothing"),
    "value for a part": ("stage=3", "stage: expected keys below it, such as stage.name, got 3"),
    "key below a value": ("seed.x=3", "seed: expected int, got {'x': 3}"),
    "not YAML": ("model.sparsities=[1", "model.sparsities=[1: the value is not YAML"),
    "range": ("batch_size=0", "batch_size: expected a number >= 1, got 0"),
    "range below": ("stage.steps=0", "stage.steps: expected an integer >= 1, got 0"),
    "range two below": ("stage.optimizer.lr=0", "stage.optimizer.lr: expected a finite number > 0"),
    "range in the model": (
        "model.sparsities=[2,99]",
        "model.sparsities: expected numbers in [1, atoms = 16]",
    ),
    "choice in the model": ("model.form=other", "model.form: expected 'coupled' or 'classic', got 'other'"),
    "choice in the data": ("data.embed.pooling=max", "data.embed.pooling: expected one of"),
    "shares": ("data.fractions=[0.5,0.5,0.5]", "data.fractions: expected three shares > 0 that sum to 1"),
    "no test rows": ("data.fractions=[0.5,0.5,0]", "data.fractions: expected three shares > 0"),
    "contrastive, no head": ("objective.contrastive=1", "objective.contrastive: expected 0 where model.head"),
    "texts, no encoder": ("data.texts=[a.txt]", "data.encoder: expected the model that embeds data.texts"),
    "long warm-up": ("stage.optimizer.warmup_steps=7", "stage.optimizer.warmup_steps: expected at most"),
    "second seed": ("stage.seed=3", "stage.seed: expected 0, the run's own seed is used; got 3"),
    "unknown metric": (
        "stage.retention.best_metric=loss",
        "stage.retention.best_metric: expected one of fvu, ",
    ),
    "what the model has not": (
        "stage.numerics.gradient_checkpointing=true",
        "numerics.gradient_checkpointing",
    ),
}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words, expected = MISTAKES[mistake]
    assert expected in refusal(capfd, [*SMALL, *words.split(" ")])
    assert os.listdir(here) == ["rows.safetensors"]


CONFIGS = {
    "unknown key": ("steps: 3\n", "half.yaml: unknown key 'steps', did you mean 'stage.steps'?"),
    "unknown key below": ("stage: {stepz: 3}\n", "half.yaml: unknown key 'stage.stepz', did you mean"),
    "unknown recipe": ("recipe: other\n", "unknown recipe 'other'"),
    "recipe of another type": ("recipe: [a]\n", "half.yaml: recipe: expected a name, got ['a']"),
    "number as a key": ("1: 2\n", "half.yaml: unknown key '1'"),
    "type": ("stage: {accumulate: abc}\n", "stage.accumulate: expected int, got 'abc'"),
    "value for a part": ("stage: 7\n", "half.yaml: stage: expected keys below it"),
    "nothing for a part": ("model:\n", "half.yaml: model: expected DictionaryMoEOptions, got nothing"),
    "empty": ("", "half.yaml: expected keys and values, got NoneType"),
    "list": ("- seed\n", "half.yaml: expected keys and values, got list"),
    "not YAML": ("seed: 1\nstage: [\n", "half.yaml: not a YAML file at line 3"),
    "bytes": (b"seed: \xff\n", "half.yaml: not a YAML file"),
    "tag": ('seed: !!python/object/apply:os.mkdir ["made"]\n', "half.yaml: not a YAML file at line 1"),
    "tag of a name": ("seed: !!python/name:os.mkdir\n", "half.yaml: not a YAML file at line 1"),
}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("fault", CONFIGS)
def test_faults_of_a_config_are_one_line(fault: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content, expected = CONFIGS[fault]
    (here / "half.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert expected in refusal(capfd, [*SMALL, "--config", "half.yaml"])
    assert sorted(os.listdir(here)) == ["half.yaml", "rows.safetensors"]


def test_more_faults_of_arguments(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "half.yaml").write_text("recipe: dictionary_moe_seed\n")
    for words, expected in (
        (["--config", "none.yaml"], "none.yaml: No such file or directory"),
        (["--config", "."], ".: Is a directory"),
        (["dictionary_moe", "--config", "half.yaml"], "half.yaml: expected recipe 'dictionary_moe'"),
        (["seed=!!python/object/apply:os.mkdir ['made']"], "the value is not YAML"),
        (["--resume"], "--resume: expected --output DIR"),
        (["--resume", "--output", "none"], "--resume: none holds no run (no config.yaml)"),
        (["--output", "half.yaml"], "half.yaml: expected a folder, got a file"),
    ):
        assert expected in refusal(capfd, [*SMALL, *words])
    assert sorted(os.listdir(here)) == ["half.yaml", "rows.safetensors"]


# ---- bad rows


def npy(values: np.ndarray) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.save(folder / "bad.npy", values)
        return folder / "bad.npy"

    return write


def text(name: str, content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return write


def tensors(domain: bool = True, **changes: np.ndarray) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        table = small_table()
        arrays = {"embeddings": table.embeddings} | ({"domain": table.domain} if domain else {}) | changes
        save_file(arrays, folder / "bad.safetensors")
        return folder / "bad.safetensors"

    return write


def with_nan() -> np.ndarray:
    values = small_table().embeddings
    values[17, 3] = np.nan
    return values


BAD_ROWS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "none.npy", "none.npy: no such file"),
    "folder": (lambda folder: folder, "unknown kind of file ''"),
    "empty": (text("bad.csv", ""), "bad.csv: the file is empty (0 bytes)"),
    "header alone": (text("bad.csv", "e0,e1,domain\n"), "bad.csv: no row below the header"),
    "ragged": (text("bad.csv", "e0,e1,domain\n1,2,a\n3,4,b\n5,c\n"), "bad.csv: line 4: expected 3 columns, got 2"),
    "word": (text("bad.csv", "e0,e1,domain\n1,two,a\n"), "bad.csv: line 2, column 'e1': expected a number"),
    "NaN": (tensors(embeddings=with_nan()), "bad.safetensors: row 17, column 3: nan is not a finite"),
    "NaN, .npy": (npy(with_nan()), "bad.npy: row 17, column 3"),
    "dtype": (npy(np.zeros((50, 4), np.int32)), "bad.npy: embeddings must be float16, float32 or float64, got int32"),
    "dtype, .safetensors": (
        tensors(embeddings=np.zeros((50, 4), np.int64)),
        "bad.safetensors: key 'embeddings' must be one of F16, BF16, F32, F64, got I64",
    ),
    "one axis": (npy(np.zeros(50, np.float32)), "bad.npy: embeddings must be 2-D"),
    "kind": (text("bad.txt", "1 2 3\n"), "bad.txt: unknown kind of file '.txt'"),
    "not what it says": (text("bad.npy", "1 2 3\n"), "bad.npy: not a readable .npy file"),
    "cut short": (text("bad.safetensors", "1 2 3\n"), "bad.safetensors: not a readable safetensors file"),
    "one domain": (tensors(domain=False), "bad.safetensors: at least 2 domains are needed, got 1"),
    "all alike": (
        tensors(embeddings=np.ones((300, 16), np.float32)),
        "bad.safetensors: 300 rows are too few: the validation part is empty",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("fault", BAD_ROWS)
def test_bad_rows_are_one_line(fault: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write, expected = BAD_ROWS[fault]
    source = write(here)
    before = files_of(here)
    assert expected in refusal(capfd, [*SMALL, f"data.source={source}"])
    assert files_of(here) == before


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("rows", "setting", "least"),
    [
        (50, "batch_size=8", 40),  # 20 rows for each of two experts
        (300, "batch_size=250", 250),
        (60, "model.input_dim=49", 50),
    ],
)
def test_rows_that_are_too_few(
    rows: int, setting: str, least: int, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_table(small_table(rows, features=64), here / "few.safetensors")
    line = refusal(capfd, [*SMALL, "data.source=few.safetensors", setting])
    assert line.startswith(f"few.safetensors: at least {least} training rows are needed for 2 experts")
    assert all(key in line for key in ("model.sparsities", "batch_size", "model.input_dim", f"{rows} rows"))
    assert "runs" not in os.listdir(here)


@pytest.mark.usefixtures("no_training")
def test_an_input_size_that_does_not_fit(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    larger = refusal(capfd, [*SMALL, "model.input_dim=17"])
    assert larger == "model.input_dim: expected at most 16, the size of rows.safetensors, got 17"
    smaller = refusal(capfd, [*SMALL, "data.reduce=false"])
    assert smaller.startswith(
        "model.input_dim: expected 16, the size of rows.safetensors (data.reduce is off)"
    )
    assert os.listdir(here) == ["rows.safetensors"]


def test_training_that_diverges_is_one_line(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["stage.optimizer.lr=1e30", "stage.optimizer.clip_norm=null", "stage.steps=40", "baselines=false"]
    assert train([*SMALL, *words]) == 1
    stderr = capfd.readouterr().err
    assert stderr.startswith("stratcore: stage 'train' stopped at step") and stderr.count("\n") == 1


# ---- run folders


@pytest.mark.usefixtures("only_recorded")
def test_runs_are_numbered_beside_each_other(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("dictionary_moe", "dictionary_moe-2", "dictionary_moe-3"):
        assert train(SMALL) == 0
        assert capfd.readouterr().out == f"report: runs/{name}/report.html\n"
        assert load_run(None, here / "runs" / name / "config.yaml", []) == load_run(None, None, SMALL)
    assert train(["dictionary_moe_seed", *SMALL[:1]]) == 0
    assert capfd.readouterr().out == "report: runs/dictionary_moe_seed/report.html\n"
