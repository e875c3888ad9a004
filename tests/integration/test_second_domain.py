"""Pictures unlike the demo's, from a package of a registry, which is fetched: textiles, good ones and two kinds of faults."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from infra.local_cluster import SMALL

from .conftest import command_line, last_json, pairs

pytestmark = [pytest.mark.trials, pytest.mark.timeout(1200)]

PACKAGE = "conformal-clip-data==0.1.4"
"""2,000 simulated textiles of 250 px, under the MIT licence."""
PLACE = "conformal_clip_data/data/textile_images/simulated"
KINDS = ["global", "local", "nominal"]
EACH = 16

Gmem = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def textiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("textiles")
    uv = Path(sys.executable).with_name("uv")
    fetch = [uv, "pip", "install", "--quiet", "--no-deps", "--target", folder, "--python", sys.executable, PACKAGE]
    try:
        done = subprocess.run(fetch, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{PACKAGE} could not be fetched: {error}")
    if done.returncode:
        pytest.skip(f"{PACKAGE} could not be fetched: {done.stderr.strip().splitlines()[-1]}")
    return folder / PLACE


@pytest.fixture(scope="module")
def few(textiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for some of each kind."""
    folder = tmp_path_factory.mktemp("few")
    for kind in KINDS:
        (folder / "pictures" / kind).mkdir(parents=True)
        for file in sorted((textiles / kind).iterdir())[:EACH]:
            shutil.copy(file, folder / "pictures" / kind)
    small = SMALL | {"data": SMALL["data"] | {"source": str(folder / "pictures"), "image_size": 64}}
    recipe = folder / "textiles.yaml"
    recipe.write_text(yaml.safe_dump({"extends": "emoji", "description": "Textiles"} | small))
    return recipe


def test_the_doctor_sees_what_they_are_and_that_the_demos_weights_do_not_suit_them(ask: Gmem, textiles: Path) -> None:
    source = command_line(pairs({"data": {"source": str(textiles)}}), str(textiles.parent / "runs"))
    done = ask("doctor", "emoji", "--pictures", "60", *source)
    said = " ".join(done.stdout.split())
    assert done.returncode == 1 and "60 of 2,000 inputs looked at, 60 can be used" in said, done.stdout
    assert "3 classes, from 500 (local) to 1,000 (nominal) pictures" in said
    assert "pretrain one, by 'gmem pretrain tokenizer" in said


def test_the_whole_chain_runs_by_a_recipe_of_a_few_lines(gmem: Gmem, few: Path) -> None:
    done = gmem("run", str(few), "--json", "--store", str(few.parent / "runs"))
    stages = {stage["stage"]: stage for stage in last_json(done)["stages"]}
    assert stages["ingest"]["rows"] == EACH * len(KINDS) and stages["train"]["rows"] == SMALL["train"]["steps"]
    metrics = stages["evaluate"]["details"]["metrics"]
    # The tokenizer of another domain keeps little of them, and noise still less.
    assert 0 < metrics["train/floor/fd-emoji-evaluator"] < metrics["train/ceiling/fd-emoji-evaluator"]
