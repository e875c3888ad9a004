"""What is wrong in a file is told with the line where the key is; what was set beside it is not blamed on the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.experiments.design import load as load_experiment
from flows.recipe.files import RecipeError, assignments, load
from storage.errors import Refused

MINE = """\
extends: BASE
data:
  image_size: 250   # no multiple of 8
train:
  steps: 7
  stps: 8
  batch: &batch many
sample: {steps: *batch,
         guidance_from: 0.9, guidance_until: 0.1}
"""
BASE = """\
extends: emoji
tokenizer: {factor: 8}
network:
  size: XXL
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mine(here: None) -> str:
    Path("base.yaml").write_text(BASE)
    Path("mine.yaml").write_text(MINE.replace("BASE", "./base.yaml"))
    return "mine.yaml"


def told(recipe: str, *pairs: str) -> list[str]:
    """The problems of a recipe."""
    with pytest.raises(RecipeError) as refusal:
        load(recipe, assignments(pairs))
    assert "\n" not in str(refusal.value)
    return [str(problem) for problem in refusal.value.problems]


def test_each_problem_has_the_file_and_line_of_its_key(mine: str) -> None:
    found = told(mine)
    assert [problem.partition(" ")[0] for problem in found] == [
        "base.yaml:4:",
        "mine.yaml:7:",
        "mine.yaml:6:",
        "mine.yaml:8:",
    ]
    assert "unknown key train.stps; did you mean steps?" in found[2]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("data: {held_out: 0.1}\n\ntokenizer:\n  factor: 7", "mine.yaml:4: data.image_size 64 is not divisible"),
        ("train: {steps: 3}\nsample:\n  kind: sde\n  method: dopri5\n", "mine.yaml:4: sample.method dopri5"),
        ("train: {steps: 3}\nevaluate:\n  further_encoders:\n  - 3\n", "mine.yaml:3: evaluate.further_encoders.0"),
        ("x: &a {lr: fast}\ntrain:\n  <<: *a\n", "mine.yaml:1: train.lr is 'fast'"),
        ("\n\ntrain: 5", "mine.yaml:3: train is 5"),
        ("\n1: 5", "mine.yaml:2: "),
    ],
)
def test_what_concerns_several_keys_is_told_at_one_of_the_files(here: None, text: str, place: str) -> None:
    Path("mine.yaml").write_text(f"{text}\nextends: emoji\n")
    assert any(problem.startswith(place) for problem in told("mine.yaml")), place


def test_what_is_set_beside_a_file_is_not_looked_for_in_it(mine: str) -> None:
    pairs = ("network.size=B", "data.image_size=64", "train.batch=0", "train.stps=1", "sample.steps=0")
    assert {problem.partition(": ")[0] for problem in told(mine, *pairs)} == {"recipe mine.yaml"}
    with pytest.raises(RecipeError, match=r"^recipe emoji: train\.lr is -1, but [^:]*; train\.batch is 0, but"):
        load("emoji", {"train": {"batch": 0, "lr": -1}})


def test_a_place_is_named_once_and_a_long_path_by_its_end(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    (folder / "mine.yaml").write_text("train: {one: 1, two: 2}")
    with pytest.raises(
        RecipeError, match=r"^….*deep/mine\.yaml:1: unknown key train\.one; .*; unknown key train\.two"
    ) as e:
        load(str(folder / "mine.yaml"))
    assert len(str(e.value)) < 700


def test_experiments_have_lines_too(tmp_path: Path) -> None:
    (tmp_path / "arms.yaml").write_text("arms:\n  a: {}\nsteps: [0]\nbaseline: b\n")
    with pytest.raises(Refused, match=r"arms\.yaml:3: steps\.0 is 0"):
        load_experiment(str(tmp_path / "arms.yaml"))
