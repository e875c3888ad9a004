"""Pictures unlike the demo's, from a package of a registry, which is fetched: textiles, good ones and two kinds of faults."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import command_line, pairs

pytestmark = [pytest.mark.trials, pytest.mark.timeout(1200)]

PACKAGE = "conformal-clip-data==0.1.4"
"""2,000 simulated textiles of 250 px, under the MIT licence."""
PLACE = "conformal_clip_data/data/textile_images/simulated"

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


def test_the_doctor_sees_what_they_are_and_that_the_demos_weights_do_not_suit_them(ask: Gmem, textiles: Path) -> None:
    source = command_line(pairs({"data": {"source": str(textiles)}}), str(textiles.parent / "runs"))
    done = ask("doctor", "emoji", "--pictures", "60", *source)
    said = " ".join(done.stdout.split())
    assert done.returncode == 1 and "60 of 2,000 inputs looked at, 60 can be used" in said, done.stdout
    assert "3 classes, from 500 (local) to 1,000 (nominal) pictures" in said
    assert "pretrain one, by 'gmem pretrain tokenizer" in said
