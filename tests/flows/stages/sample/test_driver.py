"""Stage sample on a real store, Ray, LanceDB and MLflow: shards and index, resumed, of rows, mixtures and a prior."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pyarrow.dataset as pads
import pytest
import webdataset as wds
from typer.testing import CliRunner

from flows.cli import app
from flows.engine.build import build
from flows.engine.context import Result
from flows.engine.stage import Plan
from flows.explore import generate, open_bank
from flows.models.resolve import open_network
from flows.recipe.files import load
from flows.recipe.model import Recipe
from flows.stages.bank.stage import BANK
from flows.stages.chain import stages_of
from flows.stages.evaluate.stage import STAGE as EVALUATE
from flows.stages.prior.stage import STAGE as PRIOR_STAGE
from flows.stages.sample.stage import GENERATED, STAGE
from flows.stages.sampling import Sampler
from gmem.network import Network
from storage.errors import Refused
from storage.ids import sample_of
from storage.samples import SampleRow, read_samples
from storage.tracking.tracking import Tracking
from tests.flows.stages.evaluate.test_driver import Quiet, home, uris  # noqa: F401  (fixtures)
from tests.flows.stages.evaluate.test_stage import chosen, tracking  # noqa: F401  (fixtures)


def asking(recipe: Recipe, evaluate: dict[str, Any] | None = None, steps: int = 0, **selection: Any) -> Plan:
    """The plan of a recipe that asks for such samples."""
    changed = recipe.model_dump()
    changed["selection"] |= selection
    changed["evaluate"] |= evaluate or {}
    changed["prior"] |= {"steps": steps, "width": 8, "depth": 1, "batch": 8}
    return Plan(Recipe.model_validate(changed))


@pytest.fixture(scope="module")
def plan(chosen: Recipe) -> Plan:  # noqa: F811
    return asking(chosen, count=7, shard_size=3)


@pytest.fixture(scope="module")
def made(plan: Plan, tracking: Tracking, a_ray: None) -> Result:  # noqa: F811
    return build(STAGE, plan, tracking, None, Quiet())


def rows_of(result: Result) -> list[dict[str, Any]]:
    index = pads.dataset(f"{result.artifacts['generated']}/index")
    return list(index.to_table().sort_by("number").to_pylist())


def samples_of(result: Result, plan: Plan) -> list[SampleRow]:
    shards = sorted(Path(result.artifacts["generated"]).glob("*.tar"))
    return [row for shard in shards for row in read_samples(plan.store, str(shard))]


def test_samples_lie_in_shards_that_webdataset_reads(made: Result, plan: Plan) -> None:
    folder = Path(made.artifacts["generated"])
    assert [path.name for path in sorted(folder.glob("*.tar"))] == [f"samples-{i:06d}.tar" for i in range(3)]
    read = list(wds.WebDataset(str(folder / "samples-{000000..000002}.tar"), shardshuffle=False).decode("rgb8"))
    assert [each["json"]["index"] for each in read] == list(range(7)) and read[0]["png"].shape == (64, 64, 3)
    assert made.rows == 7 and STAGE in stages_of(plan.recipe) and not plan.missing(STAGE)
    assert (folder / "first.png").read_bytes().startswith(b"\x89PNG")


def test_they_are_exported_as_one_file(made: Result, plan: Plan, tmp_path: Path) -> None:
    uri = plan.artifact(GENERATED).folder
    done = CliRunner().invoke(app, ["export", "samples", uri, str(tmp_path / "all.npz"), "--store", plan.store.root])
    assert done.exit_code == 0, done.exception
    images = np.load(tmp_path / "all.npz")["arr_0"]
    assert all((image == row.image).all() for image, row in zip(images, samples_of(made, plan), strict=True))


def test_the_index_tells_what_each_is_of(made: Result, plan: Plan, tracking: Tracking) -> None:  # noqa: F811
    rows, bank = rows_of(made), open_bank(plan.recipe)
    assert [row["number"] for row in rows] == list(range(7)) and rows[3]["shard"] == "samples-000001.tar"
    assert {row["snippet"] for row in rows} <= set(bank.matching("split = 'train'").tolist())
    assert {row["bank"] for row in rows} == {f"{plan.artifact(BANK).folder}@{bank.version}"}
    assert all(row["network"].startswith("weights/large") for row in rows) and rows[0]["mixed_with"] is None
    manifest = json.loads(Path(made.artifacts["generated"], "manifest.json").read_text())
    assert manifest["inputs"]["bank"]["version"] == bank.version and manifest["parameters"]["selection"]["count"] == 7
    run = mlflow.MlflowClient(tracking.uri).get_run(str(made.run_id))
    assert run.data.metrics["calls"] == rows[0]["calls"] and run.info.status == "FINISHED"


def test_a_sample_is_what_generate_makes_of_its_snippet_and_number(made: Result, plan: Plan) -> None:
    ids = np.array([row["snippet"] for row in rows_of(made)])
    alone = generate(plan.recipe, open_bank(plan.recipe), ids, plan.recipe.evaluate.network)
    for row, image in zip(samples_of(made, plan), alone.images, strict=True):
        assert np.abs(row.image.astype(int) - image).max() <= 2


@pytest.mark.parametrize("compiled", [False, True])
def test_stages_compile_what_they_sample_by_where_that_is_asked_for(
    made: Result, plan: Plan, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilations: list[Network] = []
    monkeypatch.setattr(Network, "compile_blocks", lambda network: compilations.append(network))
    recipe = plan.recipe.model_copy(update={"sample": plan.recipe.sample.model_copy(update={"compile": compiled})})
    context = SimpleNamespace(recipe=recipe)
    checkpoint = open_network(str(recipe.evaluate.network), plan.store)
    generator = Sampler(1, context, checkpoint).generator  # type: ignore[arg-type]
    assert compilations == ([generator.network] if compiled else [])


def test_what_is_there_is_not_made_again(made: Result, plan: Plan, tracking: Tracking) -> None:  # noqa: F811
    folder = Path(made.artifacts["generated"])
    before = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
    (folder / "manifest.json").unlink()
    (folder / "index" / "samples-000001.parquet").unlink()
    (folder / "samples-000001.tar").unlink()
    (folder / "samples-000002.tar").write_bytes(b"somebody's")  # its index part says that it is finished
    progress = Quiet()
    again = build(STAGE, plan, tracking, None, progress)
    assert again.fresh and progress.done == progress.rows == 7
    assert (folder / "samples-000001.tar").read_bytes() == before["samples-000001.tar"]
    assert (folder / "samples-000002.tar").read_bytes() == b"somebody's"
    (folder / "samples-000002.tar").write_bytes(before["samples-000002.tar"])


def test_named_rows_come_over_and_over(chosen: Recipe, tracking: Tracking, a_ray: None) -> None:  # noqa: F811
    bank = open_bank(chosen)
    some = [int(i) for i in bank.matching("split = 'train'")[:2]]
    plan = asking(chosen, ids=some, count=5, neighbours=3)
    rows = rows_of(build(STAGE, plan, tracking, None, Quiet()))
    assert [row["snippet"] for row in rows] == [*some, *some, some[0]]
    assert all(sample_of(row["mixed_with"]) != sample_of(row["snippet"]) for row in rows)
    edited = asking(chosen, ids=[2**50], count=1)
    with pytest.raises(Refused, match=f"no row {2**50}"):
        build(STAGE, edited, tracking, None, Quiet())
    with pytest.raises(Refused, match="has no such rows"):
        build(STAGE, asking(chosen, where="label = 77", count=1), tracking, None, Quiet())


@pytest.fixture(scope="module")
def learned(chosen: Recipe, tracking: Tracking, a_ray: None) -> Recipe:  # noqa: F811
    """The recipe with a prior of its bank."""
    build(PRIOR_STAGE, asking(chosen, steps=3), tracking, None, Quiet())
    return chosen


def test_a_prior_is_sampled_from(learned: Recipe, tracking: Tracking) -> None:  # noqa: F811
    plan = asking(learned, steps=3, prior=True, count=5, shard_size=2)
    assert plan.parameters(GENERATED)["prior_step"] == 3
    made = build(STAGE, plan, tracking, None, Quiet())
    assert [(row["snippet"], row["key"], row["class"]) for row in rows_of(made)] == [(None, None, None)] * 5
    assert len({row.image.tobytes() for row in samples_of(made, plan)}) == 5
    with pytest.raises(Refused, match="no class 'cats'"):
        build(STAGE, asking(learned, steps=3, prior=True, of_class="cats", count=2), tracking, None, Quiet())


@pytest.mark.parametrize("snippets", ["prior", "mixed"])
def test_an_evaluation_of_what_is_nobodys(learned: Recipe, tracking: Tracking, snippets: str) -> None:  # noqa: F811
    plan = asking(learned, {"snippets": snippets}, steps=3)
    made = build(EVALUATE, plan, tracking, None, Quiet())
    results = json.loads(Path(made.artifacts["report"], "report.json").read_text())
    said = {each["protocol"]["snippets"] for each in results if each["subject"].startswith("samples of train")}
    assert len(said) == 1 and ("drawn by the prior at step 3" if snippets == "prior" else "8 nearest") in said.pop()
    bank = open_bank(learned)
    for split in ("train", "held_out"):
        rows = list(read_samples(plan.store, f"{made.artifacts['samples']}/{split}-000000.tar"))
        if snippets == "prior":
            assert {(row.snippet, row.mixed_with) for row in rows} == {(-1, None)}
        else:
            partners = [row.mixed_with for row in rows if row.mixed_with is not None]
            assert len(partners) == len(rows) and set(partners) <= set(bank.matching(f"split = '{split}'").tolist())
    assert {"samples-train", "samples-held-out"} <= set(made.pictures)
    assert not plan.missing(EVALUATE) and asking(learned, steps=3).missing(EVALUATE)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"selection": {"ids": [1], "where": "label = 1"}}, "names the rows"),
        ({"selection": {"prior": True, "noise": 0.5}}, "in no bank"),
        ({"selection": {"of_class": "flags"}}, "goes with prior"),
        ({"selection": {"prior": True, "count": 3}}, "prior.steps is 0"),
        ({"evaluate": {"snippets": "prior"}}, "prior.steps is 0"),
        ({"evaluate": {"snippets": "prior", "bank": "bank/mine"}, "prior": {"steps": 3}}, "recipe's own bank"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        load("emoji", changed)
