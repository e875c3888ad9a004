"""The benchmarks run through in small; the Fréchet distance is timed beside scipy's in every run of the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
PROGRAMS = [entry["program"].removesuffix(".py") for entry in yaml.safe_load((HERE / "entries.yaml").read_text())]


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    environment |= {"PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, str(HERE / "bench.py"), *arguments, "--store", str(folder)]
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=280)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_benchmark_measures_what_its_entry_asks_for(program: str, tmp_path: Path) -> None:
    done = run(program, "--small", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert rows and all(row["value"] > 0 for row in rows)
    asked = next(
        e["least"] for e in yaml.safe_load((HERE / "entries.yaml").read_text()) if e["program"] == f"{program}.py"
    )
    of_any_size = {name for name in asked if "2048" not in name}
    assert of_any_size <= {row["what"] for row in rows}


def test_an_unknown_benchmark_is_one_sentence(tmp_path: Path) -> None:
    done = run("dancing", folder=tmp_path)
    assert (done.returncode, done.stderr) == (1, "there is no benchmark dancing; see entries.yaml\n")


@pytest.mark.benchmark
def test_2048_dimensions_under_a_second_and_a_half_and_five_times_faster_than_sqrtm(tmp_path: Path) -> None:
    done = run("frechet", "--json", folder=tmp_path)
    assert done.stdout, done.stderr
    rate, ratio = (row["value"] for row in json.loads(done.stdout))
    print(f"frechet_distance {1 / rate:.2f} s, {ratio:.1f} times as fast as sqrtm")
    assert ratio >= 5
    # The absolute figure is of an idle machine: give busy neighbours their share.
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert 1 / rate < 1.5 * busy
