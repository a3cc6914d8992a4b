"""Settings of a run: precedence, and what is refused."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from python_tests.recipes.small_run import SMALL, refusal
from stratcore.cli import train
from stratcore.models import DictionaryMoE
from stratcore.recipes import RECIPES
from stratcore.recipes.dual_stream_vit_source import SOURCE_RUNS
from stratcore.recipes.settings import load_run

pytestmark = pytest.mark.usefixtures("single_thread")


def printed(capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert train([*words, "--print_config"]) == 0
    stdout, stderr = capfd.readouterr()
    assert stderr == ""
    return yaml.safe_load(stdout)


# Of the many runs of the source documents on images, which differ in values alone, the first.
ALIKE = {recipe.__name__ for recipe in SOURCE_RUNS[1:]}


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in ALIKE])
def test_a_printed_config_stands_alone(
    recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(printed(capfd, recipe)))
    assert printed(capfd, "--config", str(config)) == printed(capfd, recipe)
    assert load_run(RECIPES, None, config, []) == RECIPES[recipe]()
    assert load_run(RECIPES, recipe, config, []) == RECIPES[recipe]()


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
        RECIPES,
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
    run = load_run(RECIPES, None, None, ["stage.average.decay=0.5", "stage.average.warmup=false"])
    assert (run.stage.average.decay, run.stage.average.warmup) == (0.5, False)
    assert (
        load_run(RECIPES, None, None, ["stage.average.decay=0.5", "stage.average=null"]).stage.average is None
    )


def test_derived_sizes_follow_the_settings() -> None:
    run = load_run(RECIPES, None, None, ["model.sparsities=[2,4,5]", "model.atoms=9", "model.input_dim=6"])
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
