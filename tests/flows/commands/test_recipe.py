"""``gmem recipe``: what is asked for is on standard output, errors are on standard error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

GMEM = Path(sys.executable).with_name("gmem")


def gmem(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([GMEM, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_a_recipe_is_shown_with_what_overrides_it() -> None:
    shown = gmem("recipe", "show", "emoji", "--set", "train.steps=7")
    assert yaml.safe_load(shown.stdout)["train"]["steps"] == 7 and shown.stderr == ""
    as_json = gmem("recipe", "show", "emoji", "--set", "train.steps=7", "--json")
    assert json.loads(as_json.stdout) == yaml.safe_load(shown.stdout)


def test_shipped_recipes_are_listed_and_valid() -> None:
    names = [line.split()[0] for line in gmem("recipe", "list").stdout.splitlines()]
    assert names == ["emoji", "emoji-long", "imagenet256-b", "imagenet256-xl", "imagenet512-xl"]
    assert gmem("recipe", "check", "imagenet256-xl").stdout.rstrip().endswith("200,000 steps: valid")


def test_what_is_wrong_is_one_sentence_on_standard_error() -> None:
    refused = gmem("recipe", "check", "nonsense")
    assert refused.returncode == 2 and refused.stdout == ""
    assert len(refused.stderr.strip().splitlines()) == 1 and "'nonsense' does not exist" in refused.stderr


def test_what_a_valid_recipe_names_and_is_not_here_is_told_beside(tmp_path: Path) -> None:
    missing = [f"data.source={tmp_path / 'none'}", "encoder.source=shipped:nope"]
    checked = gmem("recipe", "check", "emoji", "--set", missing[0], "--set", missing[1])
    assert checked.returncode == 0 and checked.stdout.rstrip().endswith("valid")
    told = checked.stderr.splitlines()
    assert [line.split(":")[1].strip() for line in told] == ["data.source", "encoder.source"]


def test_a_recipe_that_is_wrong_is_told_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("mine.yaml")
    wrong = "\n".join(f"  unknown{number}: 1" for number in range(30))
    file.write_text(f"extends: emoji\ntrain:\n{wrong}\n  batch: 0\n")
    checked = gmem("recipe", "check", str(file))
    assert checked.returncode == 2 and checked.stdout == ""
    lines = checked.stderr.splitlines()
    assert len(lines) == 31 and all(line.startswith(f"{file}:") for line in lines)
    assert f"{file}:33: train.batch is 0" in checked.stderr
