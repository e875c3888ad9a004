"""`gmem compare-arms`, `gmem sweep` and `gmem results` as a person types them, on a real Ray, Prefect and MLflow."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.experiments import design
from storage.tracking.access import client

from .conftest import SMALL

Gmem = Callable[..., subprocess.CompletedProcess[str]]

EXPERIMENT = {
    "description": "Two samplers of one training.",
    "baseline": "three",
    "arms": {"three": {}, "four": {"sample.steps": 4}},
    "common": {"evaluate.memorisation": False},
    "steps": [2, 6],
    "seeds": [5],
}


class Bench:
    """A folder with pictures, a store and an experiment, and commands that run in it."""

    def __init__(self, gmem: Gmem, folder: Path, pictures: Path) -> None:
        self.gmem, self.folder = gmem, folder
        self.settings = [part for pair in (*SMALL, f"data.source={pictures}") for part in ("--set", pair)]

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.gmem(*arguments, *self.settings, "--store", "store", cwd=self.folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiments")
    (folder / "two.yaml").write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def compared(gmem: Gmem, pictures: Path, made: Path) -> dict[str, Any]:
    done = Bench(gmem, made, pictures)("compare-arms", "emoji", "two.yaml", "--out", "out", "--json")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture
def bench(gmem: Gmem, pictures: Path, made: Path, compared: dict[str, Any], tmp_path: Path) -> Bench:
    """A test's own copy of the folder in which the experiment was made."""
    return Bench(gmem, shutil.copytree(made, tmp_path / "experiments"), pictures)


def _runs(bench: Bench) -> list[Any]:
    mlflow = client(f"sqlite:///{bench.folder}/store/mlflow.db")
    experiment = mlflow.get_experiment_by_name("emoji")
    assert experiment is not None
    return list(mlflow.search_runs([experiment.experiment_id], max_results=500))


def test_arms_that_differ_in_sampling_share_one_training_measured_at_every_step(
    bench: Bench, compared: dict[str, Any]
) -> None:
    points = compared["points"]
    assert [(p["arm"], p["seed"], p["step"]) for p in points] == [
        ("three", 5, 2),
        ("three", 5, 6),
        ("four", 5, 2),
        ("four", 5, 6),
    ]
    assert len({p["report"] for p in points}) == 4 and all(p["seconds"] > 0 for p in points)
    assert points[0]["calls"] < points[2]["calls"] and points[1]["epochs"] == 3 * points[0]["epochs"]
    assert len(list((bench.folder / "store" / "training").iterdir())) == 1
    page = (bench.folder / "out" / "RESULTS.md").read_text()
    assert "## two" in page and (bench.folder / "out" / "two-train.png").stat().st_size > 5000


def test_mlflow_has_the_experiment_its_trials_and_their_stages(bench: Bench, compared: dict[str, Any]) -> None:
    by_id = {run.info.run_id: run for run in _runs(bench)}
    top = by_id[compared["run_id"]]
    assert (top.info.run_name, top.info.status, top.data.tags["gmem.kind"]) == ("two", "FINISHED", "experiment")
    trials = [run for run in by_id.values() if run.data.tags.get("mlflow.parentRunId") == top.info.run_id]
    assert {run.info.run_name for run in trials} == {"three, seed 5", "four, seed 5"}
    stages = [
        run for run in by_id.values() if run.data.tags.get("mlflow.parentRunId") in {t.info.run_id for t in trials}
    ]
    names = sorted(run.info.run_name for run in stages)
    assert names == ["bank", "evaluate", "evaluate", "evaluate", "evaluate", "ingest", "latents", "train"]
    mlflow = client(f"sqlite:///{bench.folder}/store/mlflow.db")
    history = mlflow.get_metric_history(trials[0].info.run_id, "train/samples/fd-emoji-evaluator")
    assert sorted(point.step for point in history) == [2, 6]
    files = {file.path for file in mlflow.list_artifacts(top.info.run_id)}
    assert {"findings.json", "findings.md", "train-distances.png", "held-out-distances.png", "arms.json"} <= files


def test_a_second_time_nothing_is_computed_and_the_page_is_made_from_mlflow(
    bench: Bench, compared: dict[str, Any]
) -> None:
    again = bench("compare-arms", "emoji", "two.yaml", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["points"] == compared["points"]
    assert not any(word in again.stderr for word in ("train  ", "evaluate  "))
    done = bench("results", "emoji", "--out", "R.md", "--figures", "plots")
    assert done.returncode == 0 and "1 experiments" in done.stdout, done.stderr
    assert "Two samplers of one training." in (bench.folder / "R.md").read_text()


def test_a_sweep_over_a_training_that_is_there_trains_nothing(bench: Bench, compared: dict[str, Any]) -> None:
    network = next((bench.folder / "store" / "training").iterdir())
    done = bench("sweep", "emoji", "--grid", "sample.shift=1,0.5", "--network", str(network), "--name", "shifts")
    assert done.returncode == 0, done.stderr
    assert "shift 0.5" in done.stdout and "shifts" in done.stdout
    assert len(list((bench.folder / "store" / "training").iterdir())) == 1


def test_one_training_serves_every_average_of_a_sweep(bench: Bench) -> None:
    before = set((bench.folder / "store").glob("training/*"))
    done = bench("sweep", "emoji", "--grid", "sample.ema=null,0.1,0.3", "--name", "averages", "--register", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    points = found["points"]
    assert [point["arm"] for point in points] == ["ema None", "ema 0.1", "ema 0.3"]
    distances = {point["metrics"]["train/samples/fd-emoji-evaluator"]: point["arm"] for point in points}
    assert len(distances) == 3
    best = client(f"sqlite:///{bench.folder}/store/mlflow.db").get_model_version_by_alias("gmem-emoji", "best")
    assert found["registered"] == f"models:/gmem-emoji/{best.version}"
    assert json.loads(best.tags["chosen"])["arm"] == distances[min(distances)]
    (training,) = set((bench.folder / "store").glob("training/*")) - before
    newest = max((training / "checkpoints").iterdir())
    assert {"ema.safetensors", "ema_1.safetensors", "ema_3.safetensors"} <= {file.name for file in newest.iterdir()}


@pytest.mark.timeout(900)
def test_shipped_arms_of_a_class_and_of_a_small_bank_train_and_are_measured(bench: Bench) -> None:
    few = design.load("emoji-arms")
    arms = {name: few.arms[name] for name in ("label", "bank-1")}
    made = {"arms": arms, "common": few.common, "steps": [2], "seeds": [7]}
    (bench.folder / "few.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    done = bench("compare-arms", "emoji", "few.yaml", "--json")
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout.splitlines()[-1])["points"]
    assert [point["arm"] for point in points] == list(arms)
    distances = [point["metrics"]["train/samples/fd-emoji-evaluator"] for point in points]
    assert all(distance > 0 for distance in distances) and len(set(distances)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare-arms", "emoji", "three.yaml"], "cannot be read"),
        (["compare-arms", "emoji", "typo.yaml"], "unknown key sample.stepps"),
        (["compare-arms", "emoji", "other-steps.yaml"], "only those at steps 2, 3, 6, not at 4"),
        (["compare-arms", "emoji", "eyes.yaml"], "measured by fd-emoji-encoder and fd-emoji-evaluator"),
        (["compare-arms", "emoji", "two.yaml", "--at-once", "2"], "side by side as jobs of a cluster"),
        (
            ["compare-arms", "emoji", "emoji-encoders"],
            "takes its snippets from ./build/encoders/barlow, and there is no",
        ),
        (["sweep", "emoji"], "name what to vary"),
        (["sweep", "emoji", "--grid", "sample.steps"], "not of the form"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_anything_is_computed(
    bench: Bench, compared: dict[str, Any], arguments: list[str], words: str
) -> None:
    typo = EXPERIMENT | {"arms": {"three": {"sample.stepps": 3}}}
    (bench.folder / "typo.yaml").write_text(yaml.safe_dump(typo, sort_keys=False))
    eyes = EXPERIMENT | {"arms": {"three": {}, "other": {"evaluate.encoder": "shipped:emoji-encoder"}}}
    (bench.folder / "eyes.yaml").write_text(yaml.safe_dump(eyes, sort_keys=False))
    (bench.folder / "other-steps.yaml").write_text(yaml.safe_dump(EXPERIMENT | {"steps": [4, 6]}))
    done = bench(*arguments)
    assert done.returncode == 2 and words in done.stderr.replace("\n", " "), done.stderr
    assert "Traceback" not in done.stderr
