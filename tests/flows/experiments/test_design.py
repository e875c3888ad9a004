"""Experiments as files: arms or a grid, and the trials that follow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flows.engine.stage import Plan
from flows.experiments.design import load, names
from flows.recipe.files import load as load_recipe
from flows.stages.bank.stage import BANK, MEMORY
from flows.stages.ingest.stage import IMAGES
from flows.stages.latents.stage import LATENTS
from flows.stages.train.stage import TRAINING
from gmem.weights import WeightsRef
from storage.errors import Refused

ARMS = {
    "baseline": "none",
    "arms": {"memory": {}, "none": {"network.conditioning": "none", "train": {"align": 0}}},
    "common": {"evaluate.memorisation": False},
    "steps": [300, 100],
    "seeds": [1, 2],
}


def test_every_arm_is_tried_with_every_seed_before_the_next_seed() -> None:
    trials = list(load(ARMS).trials())
    assert [trial.name for trial in trials] == ["memory, seed 1", "none, seed 1", "memory, seed 2", "none, seed 2"]
    recipe = load_recipe("emoji", trials[3].at(100))
    assert recipe.network.conditioning == "none" and recipe.train.align == 0 and not recipe.evaluate.memorisation
    assert (recipe.train.seed, recipe.train.steps, recipe.train.checkpoint_at) == (2, 100, [100, 300])


def test_a_grid_stands_for_every_combination() -> None:
    sweep = load({"grid": {"sample.guidance": [1, 1.5], "sample.steps": [10, 20]}})
    assert list(sweep.changes()) == [
        "guidance 1, steps 10",
        "guidance 1, steps 20",
        "guidance 1.5, steps 10",
        "guidance 1.5, steps 20",
    ]
    (trial, *_) = sweep.trials()
    assert trial.name == "guidance 1, steps 10" and trial.at(None) == {"sample": {"guidance": 1, "steps": 10}}


def test_averages_that_arms_sample_are_known() -> None:
    sweep = load({"grid": {"sample.ema": [None, 0.9, 0.99], "sample.steps": [10]}, "common": {"sample": {"seed": 1}}})
    assert sweep.averages() == {0.9, 0.99}
    assert load(ARMS).averages() == set()


@pytest.mark.parametrize("name", names())
def test_shipped_experiments_change_what_recipes_have(name: str) -> None:
    experiment = load(name)
    assert experiment.description and experiment.name == name
    for trial in experiment.trials():
        for step in experiment.steps:
            load_recipe("emoji", trial.at(step))


def test_the_folders_of_other_encoders_are_those_that_make_trains() -> None:
    makefile = (Path(__file__).parents[3] / "Makefile").read_text()
    trained = re.findall(r"pretrain encoder emoji --out (\S+)", makefile)
    arms = load("emoji-encoders").arms
    named = [changes["encoder.source"] for changes in arms.values() if "encoder.source" in changes]
    assert named == [f"./{folder}" for folder in trained] and len(named) == len(arms) - 2
    assert {WeightsRef.parse(each).kind for each in named} == {"folder"}, "there or not, and never looked for in a hub"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"arms": {}}, "either arms or a grid"),
        ({"grid": {"sample.steps": [5]}}, "either arms or a grid"),
        ({"baseline": "nothing"}, "baseline 'nothing' is no arm; the arms are memory, none"),
        ({"steps": [100, 100]}, "hold the same number twice"),
        ({"steps": [0]}, "steps.0 is 0"),
        ({"seeds": ["x"]}, "seeds.0 is 'x'"),
        ({"seed": [1]}, "unknown key seed; did you mean seeds?"),
        ({"seeds": list(range(600))}, "1,200 trials"),
        ({"name": "../up"}, "name is '../up'"),
    ],
)
def test_what_is_no_experiment_is_refused_in_a_sentence(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=r"^experiment [^\n]*$") as error:
        load(ARMS | changed)
    assert words in str(error.value)


@pytest.mark.parametrize("text", ["[1, 2]", "arms: {a: ", "", "\x00"])
def test_a_file_that_is_none_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    with pytest.raises(Refused, match=r"^experiment [^\n]*$"):
        load(str(path))


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    with pytest.raises(Refused, match="did you mean emoji-memory"):
        load("emoji-memori")


def test_every_shipped_arm_but_the_sampler_s_is_a_training_of_its_own_on_the_same_pictures(tmp_path: Path) -> None:
    plans = {
        trial.arm: Plan(load_recipe("emoji", trial.at(75) | {"store": str(tmp_path)}), source_fingerprint="pinned")
        for trial in load("emoji-arms").trials()
        if trial.seed == 1
    }
    trained = {arm: plan.fingerprint(TRAINING) for arm, plan in plans.items()}
    assert trained.pop("sampled-by-ode") == trained["memory"]
    assert len(set(trained.values())) == len(trained) >= 15
    assert len({plan.fingerprint(output) for plan in plans.values() for output in (IMAGES, LATENTS, BANK)}) == 3
    keeping = {arm for arm, plan in plans.items() if MEMORY.wanted(plan.recipe)}
    assert keeping == {"bank-50", "bank-10", "bank-1", "rank-64", "rank-16"}
