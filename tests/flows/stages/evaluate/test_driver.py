"""The evaluation of a network from elsewhere, on a bank from elsewhere, with everything that can be measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.engine.build import build
from flows.engine.context import Result
from flows.engine.errors import StageError
from flows.engine.stage import Plan
from flows.exchange.importing import import_network
from flows.exchange.importing_bank import import_bank
from flows.recipe.files import load
from flows.recipe.model import Recipe
from flows.stages.bank.stage import BANK
from flows.stages.evaluate.comparison import read_report, side_by_side
from flows.stages.evaluate.report import Found
from flows.stages.evaluate.stage import REPORT, SAMPLES, STAGE, STATISTICS, named_encoders, searched
from flows.stages.ingest.stage import IMAGES
from flows.stages.train.stage import TRAINING
from gmem.metrics import aligned_similarity, overlap, random_inception, read_adm, read_sums
from gmem.network import Network
from gmem.settings import NetworkConfig
from storage.images.index import read_index
from storage.images.shards import ShardPlan, read_shard, write_index, write_shard
from storage.samples import read_samples
from storage.store import Store
from storage.tracking.tracking import Tracking
from tests.onnx_files import write_means

COUNT, SHARD, SEED = 10, 30, 3
CONFIG = NetworkConfig(2, 32, 2, latent_channels=12, latent_size=8, snippet_dim=16)


class Quiet:
    """Keeps what is told of progress."""

    def __init__(self) -> None:
        self.rows = self.done = 0
        self.notes: list[str] = []

    def total(self, rows: int, done: int = 0) -> None:
        self.rows, self.done = rows, done

    def advance(self, rows: int, **values: float) -> None:
        self.done += rows

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, published files and the weights of a detector."""
    root, random = tmp_path_factory.mktemp("evaluation"), np.random.default_rng(0)
    (root / "pictures").mkdir()
    for i in range(30):
        low = random.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(low).resize((64, 64), Image.Resampling.BICUBIC).save(root / "pictures" / f"{i:02d}.png")
    torch.manual_seed(0)
    for name in ("large", "small"):
        torch.save({"ema": Network(CONFIG).state_dict()}, root / f"{name}.pt")
    torch.save({"mean": torch.zeros(12), "std": torch.ones(12)}, root / "latents_stats.pt")
    torch.save(torch.randn(40, 16), root / "bank.pth")
    torch.save(random_inception().state_dict(), root / "inception.pth")
    _reference(root / "reference.npz")
    return root


def _reference(path: Path) -> None:
    """As ADM's: statistics of many pictures, and some of the pictures."""
    random, arrays = np.random.default_rng(1), {}
    for suffix, dim in (("", 2048), ("_s", 2023)):
        rows = random.normal(size=(64, dim))
        arrays |= {f"mu{suffix}": rows.mean(0), f"sigma{suffix}": rows.T @ rows / 64}
    np.savez(path, arr_0=random.integers(0, 256, (6, 64, 64, 3), np.uint8), **arrays)


@pytest.fixture(scope="module")
def uris(home: Path) -> dict[str, str]:
    store = Store(str(home / "runs"))
    statistics = str(home / "latents_stats.pt")
    networks = {
        name: import_network(home / f"{name}.pt", store, latent_stats=statistics).uri for name in ("large", "small")
    }
    return networks | {"bank": import_bank(home / "bank.pth", store).artifact}


def recipe(home: Path, **evaluate: Any) -> Recipe:
    return load(
        "emoji",
        {
            "store": str(home / "runs"),
            "data": {"source": str(home / "pictures"), "held_out": 0.4, "shard_size": SHARD},
            "sample": {"steps": 2, "seed": SEED},
            "evaluate": {"samples": COUNT, "kernel_subsets": 3} | evaluate,
        },
    )


@pytest.fixture(scope="module")
def plan(home: Path, uris: dict[str, str]) -> Plan:
    """Guided by a smaller network, measured by two detectors, one of them against a file, and copies by a third."""
    inception = {"inception": str(home / "inception.pth"), "reference": str(home / "reference.npz")}
    copies = {"copy_detector": f"onnx:{write_means(home / 'means.onnx')}?size=64"}
    chosen = recipe(home, network=uris["large"], bank=uris["bank"], **inception, **copies)
    guided = chosen.sample.model_copy(update={"guide": uris["small"], "guidance": 1.5})
    plan = Plan(chosen.model_copy(update={"sample": guided}))
    artifact, shards = plan.artifact(IMAGES), ShardPlan(plan.recipe.source, 64, 0.4)
    write_shard(artifact.uri, 0, plan.listing.slice(0, SHARD), shards)
    write_index(artifact.uri, 1, shards)
    with artifact.lease("test") as lease:
        artifact.commit(artifact.describe(lease))
    return plan


@pytest.fixture(scope="module")
def told() -> Quiet:
    return Quiet()


@pytest.fixture(scope="module")
def result(plan: Plan, told: Quiet, a_ray: None) -> Iterator[Result]:
    tracking = Tracking.open(f"sqlite:///{plan.store.root}/mlflow.db", plan.store, "evaluation")
    yield build(STAGE, plan, tracking, None, told)


@pytest.fixture(scope="module")
def results(result: Result) -> dict[str, dict[str, Any]]:
    """By subject and metric."""
    found: dict[str, dict[str, Any]] = {}
    for each in json.loads(Path(result.artifacts["report"], "report.json").read_text()):
        found.setdefault(each["subject"].partition(",")[0], {})[each["metric"]] = each
    return found


def test_every_metric_is_in_the_report(results: dict[str, dict[str, Any]], told: Quiet) -> None:
    features = {"mind", "precision", "recall", "density", "coverage", "vendi"}
    inception = {"fid", "sfid", "fidr", "kid", "inception_score"} | features
    encoder = {f"{name}-emoji-evaluator" for name in {"fd", "fdr", "kd"} | features}
    memorised = {f"memorisation_{name}-emoji-evaluator" for name in ("ratio", "closer", "copied", "copied_pixels")}
    memorised |= {f"memorisation_{name}-means" for name in ("ratio", "closer", "copied")}
    assert set(results) == {"samples of train", "floor of train", "ceiling of train"}
    assert set(results["samples of train"]) == inception | encoder | memorised | {
        "diversity",
        "diversity-emoji-evaluator",
    }
    assert set(results["floor of train"]) == set(results["ceiling of train"]) == inception | encoder
    distance = {kind: results[f"{kind} of train"]["fd-emoji-evaluator"]["value"] for kind in ("floor", "ceiling")}
    assert distance["floor"] < distance["ceiling"]
    assert results["samples of train"]["kd-emoji-evaluator"]["details"]["subsets"] == 3
    assert told.done == told.rows > 0


def test_every_number_carries_its_protocol(
    results: dict[str, dict[str, Any]], uris: dict[str, str], home: Path
) -> None:
    numbers = results["samples of train"]
    fid, encoder = numbers["fid"]["protocol"], numbers["fd-emoji-evaluator"]["protocol"]
    assert (fid["count"], fid["seed"], fid["steps"], fid["calls"]) == (COUNT, SEED, 2, 4)
    assert fid["sampler"] == "sde euler shift 1 diffusion linear norm 3 last mean 0.004"
    assert fid["guidance"].startswith("1.5 for t in [0, 1] with the network of network small.pt step 0 (")
    assert uris["bank"].endswith(fid["snippets"].split(" rows of ")[1].partition(",")[0])
    assert fid["reference"] == "reference.npz" and fid["reference_hash"] == read_adm(home / "reference.npz").sha256
    assert numbers["precision"]["protocol"]["reference_count"] == 6  # the pictures in the file
    assert encoder["reference"] == "train pictures of emoji at 64 px" and encoder["reference_count"] == COUNT
    searched = numbers["memorisation_ratio-emoji-evaluator"]["protocol"]
    assert searched["reference"].startswith("all training pictures") and searched["reference_count"] > COUNT
    assert "large.pt step 0" in numbers["fid"]["subject"]


def test_samples_and_their_nearest_pictures_are_kept(result: Result, home: Path) -> None:
    nearest = json.loads(Path(result.artifacts["report"], "nearest.json").read_text())
    assert len(nearest["train"]["nearest"]) == len(nearest["train"]["distance"]) == COUNT
    assert len(nearest["held_out_pictures"]) == COUNT and min(nearest["train"]["nearest"]) >= 0
    assert set(result.pictures) == {"samples-train", "seeds-train", "nearest-train"}
    with Image.open(result.pictures["samples-train"]) as picture:
        assert picture.width > 128
    lines = result.details["lines"]
    assert any(line.startswith("nearest training pictures") for line in lines)
    [beside] = [line for line in lines if line.startswith("emoji-evaluator, train snippets: FDr ")]
    assert all(f" {word} " in beside for word in ("MIND", "precision", "recall", "density", "coverage", "Vendi"))
    assert sum(" train snippets: FDr " in line for line in lines) == 2  # of the FID Inception network as well

    def export(*arguments: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["export", *arguments, "--store", str(home / "runs"), "--json"])
        if done.exception:
            raise done.exception
        return json.loads(done.stdout.splitlines()[-1])

    assert export("samples", result.artifacts["samples"], str(home / "samples.npz"))["samples"] == COUNT
    images = np.concatenate(list(read_adm(home / "samples.npz").images(4)))
    assert images.shape == (COUNT, 64, 64, 3) and images.std() > 0
    assert export("statistics", result.artifacts["statistics"], str(home / "own.npz"))["pictures"] == COUNT
    pool = read_adm(home / "own.npz").pool
    assert pool is not None and (pool.dim, pool.count) == (2048, COUNT)
    with pytest.raises(ValueError, match=f"holds {COUNT} samples of split train, not 11"):
        export("samples", result.artifacts["samples"], str(home / "more.npz"), "-n", "11")


def test_the_figure_of_the_nearest_begins_with_the_worst(result: Result, plan: Plan) -> None:
    nearest = json.loads(Path(result.artifacts["report"], "nearest.json").read_text())["train"]
    number = int(np.argmin(nearest["distance"]))
    samples = {
        row.number: row.image for row in read_samples(plan.store, f"{result.artifacts['samples']}/train-000000.tar")
    }
    training = {p.sample: p.image for p in read_shard(plan.artifact(IMAGES).uri, "shard-000000")}
    with Image.open(result.pictures["nearest-train"]) as picture:
        drawn = np.asarray(picture)[4:, 4:]  # past the gap around each
    assert np.array_equal(drawn[: 2 * 64 : 2, : 2 * 64 : 2], samples[number])  # enlarged twice
    assert np.array_equal(drawn[2 * 64 : 4 * 64 : 2, : 2 * 64 : 2], training[nearest["nearest"][number]])


def test_a_few_snippets_are_sampled_under_several_seeds(result: Result, plan: Plan, results: dict[str, Any]) -> None:
    rows = list(read_samples(plan.store, f"{result.artifacts['report']}/seeds-train.tar"))
    first = list(read_samples(plan.store, f"{result.artifacts['samples']}/train-000000.tar"))
    assert [row.snippet for row in rows] == [row.snippet for row in first[:8] for _ in range(4)]
    assert not {row.number for row in rows} & {row.number for row in first}
    measured = results["samples of train"]["diversity-emoji-evaluator"]
    assert measured["protocol"]["count"] == len(rows) == 32 and measured["details"]["seeds"] == 4
    assert 0 < measured["value"] == measured["details"]["within"] / measured["details"]["between"]


def test_two_reports_side_by_side(result: Result, plan: Plan, home: Path, tmp_path: Path) -> None:
    first = read_report(result.artifacts["report"], plan.store)
    other = [
        replace(r, value=r.value + 1, protocol=replace(r.protocol, seed=r.protocol.seed + (r.metric == "fid")))
        for r in first
    ]
    pairs = {(p.subject, p.metric): p for p in side_by_side(first, other, [])}
    assert len(pairs) == len(first)
    refused, compared = (pairs["samples of train", metric] for metric in ("fid", "sfid"))
    assert refused.change is None and refused.differs == f"seed: {SEED} and {SEED + 1}"
    assert compared.change == pytest.approx(1) and compared.differs == ""
    allowed = {(p.subject, p.metric): p for p in side_by_side(first, other, ["seed"])}["samples of train", "fid"]
    assert allowed.change == pytest.approx(1) and allowed.differs
    shown = CliRunner().invoke(app, ["compare", result.artifacts["report"], result.artifacts["report"], "--json"])
    assert {row["change"] for row in json.loads(shown.stdout.splitlines()[-1])} == {0.0}
    (tmp_path / "other.json").write_text(json.dumps([asdict(r) for r in other]))
    (tmp_path / "report.json").write_text((tmp_path / "other.json").read_text())
    lines = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["compare", result.artifacts["report"], str(tmp_path)]).stdout
    assert max(len(line) for line in lines.splitlines()[2:]) <= 80
    assert all(metric in lines for metric in {r.metric for r in first}) and "samples of train:" in lines
    assert lines.count(f"seed: {SEED} and {SEED + 1}") == 1 and "[1] measured differently" in lines
    with pytest.raises(ValueError, match="no metric in common"):
        side_by_side(first, [replace(r, metric="other") for r in first], [])
    wrong_type = json.dumps([asdict(first[0]) | {"value": "low"}])
    for content in ("{", "[]", '[{"metric": "fid"}]', wrong_type):
        (tmp_path / "report.json").write_text(content)
        with pytest.raises(ValueError) as error:
            read_report(str(tmp_path), plan.store)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="holds no report"):
        read_report(str(tmp_path / "none"), plan.store)


def test_nothing_is_measured_twice(result: Result, plan: Plan) -> None:
    assert not plan.missing(STAGE)
    other = Plan(plan.recipe.model_copy(update={"sample": plan.recipe.sample.model_copy(update={"seed": 9})}))
    assert {part.kind for part in other.missing(STAGE)} == {"samples", "report"}


def test_what_the_samples_are_made_of_decides_what_is_there(home: Path, uris: dict[str, str]) -> None:
    own, outside = Plan(recipe(home)), Plan(recipe(home, network=uris["large"]))
    assert STAGE.wanted(own.recipe) == STAGE.wanted(outside.recipe) == [STAGE.outputs[0], SAMPLES, REPORT]
    assert own.fingerprint(BANK) == outside.fingerprint(SAMPLES.inputs(outside.recipe)[1])
    assert SAMPLES.inputs(own.recipe) == (TRAINING,)
    fingerprints = {
        Plan(recipe(home, **named)).fingerprint(SAMPLES)
        for named in (
            {"network": uris["large"]},
            {"network": uris["small"]},
            {"network": uris["large"], "bank": uris["bank"]},
        )
    }
    assert len(fingerprints) == 3
    copies = Plan(recipe(home, copy_detector=f"onnx:{write_means(home / 'means.onnx')}"))
    assert copies.fingerprint(SAMPLES) == own.fingerprint(SAMPLES), "samples are there already"
    assert all(copies.fingerprint(each) != own.fingerprint(each) for each in (STATISTICS, REPORT))
    # the same network by the artifact's name in the store
    folder = uris["large"].removeprefix(f"{home}/runs/").partition("/checkpoints")[0]
    assert Plan(recipe(home, network=folder)).fingerprint(SAMPLES) in fingerprints


def test_what_does_not_fit_is_refused_before_anything_is_sampled(plan: Plan, home: Path, uris: dict[str, str]) -> None:
    from flows.engine.context import Context
    from flows.stages.evaluate.driver import _plans
    from flows.stages.evaluate.references import open_adm
    from flows.stages.sampling import subject_of
    from storage.images.index import read_index

    def context(**changes: Any) -> Context:
        evaluate = plan.recipe.evaluate.model_copy(update=changes.pop("evaluate", {}))
        chosen = plan.recipe.model_copy(update={"evaluate": evaluate, **changes})
        return Context(recipe=chosen, fingerprints={}, leases={}, tracking_uri="", run_id="")

    _, bank = subject_of(context(), "samples")
    torch.save(torch.randn(3, 8), home / "narrow.pth")
    narrow = import_bank(home / "narrow.pth", plan.store).artifact
    with pytest.raises(StageError, match=r"takes snippets of 16 numbers, and those of the bank .* have 8"):
        subject_of(context(evaluate={"bank": narrow}), "samples")
    with pytest.raises(StageError, match="makes pictures of 64 px, and those of recipe emoji have 128"):
        subject_of(context(data=plan.recipe.data.model_copy(update={"image_size": 128})), "samples")
    with pytest.raises(ValueError, match="no finished checkpoint"):
        subject_of(context(evaluate={"network": str(home)}), "samples")

    torch.save(torch.randn(1, 16), home / "single.pth")
    from storage.tables.bank import Bank

    single = Bank(import_bank(home / "single.pth", plan.store).artifact)
    index = read_index(plan.artifact(IMAGES).uri)
    with pytest.raises(StageError, match="at least 2 pictures, and 2 snippets"):
        _plans(plan.recipe, single, index)
    assert len(_plans(plan.recipe, bank, index)["train"]) == COUNT

    random = np.random.default_rng(0).normal(size=(9, 64))
    np.savez(home / "clip.npz", mu=random.mean(0), sigma=np.cov(random.T))
    with pytest.raises(StageError, match="pool statistics of 64 dimensions, and the FID Inception network gives 2048"):
        open_adm(str(home / "clip.npz"))


@pytest.fixture
def found(plan: Plan, uris: dict[str, str]) -> Found:
    """What was measured of a network by random features, beside a file that holds no pictures."""
    from flows.engine.context import Context
    from flows.models.resolve import open_bank, open_network
    from flows.stages.evaluate.references import File
    from flows.stages.evaluate.worker import Shares
    from gmem.metrics import AdmReference, FeatureSums
    from gmem.metrics.inception import DETECTOR

    def sums(count: int, seed: int) -> dict[str, FeatureSums]:
        random, found = np.random.default_rng(seed), FeatureSums(("pool", "spatial"), ("pool", "logits"))
        rows = {name: random.normal(size=(count, 6)) for name in ("pool", "spatial", "logits")}
        found.update(rows, np.arange(count))
        return {"inception": found}

    many = {name: each.gaussian() for name, each in sums(30, 2)["inception"].statistics.items()}
    identity = {"detector": DETECTOR, "detector_hash": "ab", "resize": "none"}
    return Found(
        context=Context(recipe=plan.recipe, fingerprints={"images": "cd"}, leases={}, tracking_uri="", run_id=""),
        checkpoint=open_network(uris["large"], plan.store),
        guide=None,
        bank=open_bank(uris["bank"], plan.store),
        references={"train": sums(20, 1)},
        file=File(AdmReference(Path("many.npz"), "ef", many["pool"], many["spatial"], None), None, "many.npz", "ef"),
        shares={"train": Shares(sums(15, 3), calls=2, count=15)},
        seeds={},
        memorised={},
        copies={},
        pixels={},
        searched=0,
        detectors={"inception": identity},
        tokenizer={"name": "vae", "sha256": "0" * 64},
    )


def test_a_file_without_pictures_leaves_neighbours_to_the_recipes_pictures(found: Found) -> None:
    from flows.stages.evaluate.report import results_of

    protocols = {r.metric: r.protocol for r in results_of(found)["train/samples"]}
    against_file = {metric for metric, protocol in protocols.items() if protocol.reference == "many.npz"}
    assert against_file == {"fid", "sfid", "inception_score"}
    features = {"mind", "precision", "recall", "density", "coverage", "vendi"}
    assert {m for m, p in protocols.items() if p.reference_count == 20} == {"kid"} | features
    assert results_of(found)["train/floor"] == []


def test_where_a_gpu_can_be_seen_but_was_given_to_nobody_neighbours_are_found_on_the_cpu(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.stages.evaluate.report import results_of

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert {"precision", "recall"} <= {result.metric for result in results_of(found)["train/samples"]}


def test_only_wanted_pictures_are_decoded_and_both_splits_in_one_pass(
    plan: Plan, home: Path, uris: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.engine.context import Context
    from flows.models.resolve import open_network
    from flows.stages import sampling
    from flows.stages.evaluate.worker import Evaluator
    from flows.stages.extraction import read_block
    from storage.images.index import read_index

    uri = plan.artifact(IMAGES).uri
    splits = {row["sample"]: row["split"] for row in read_index(uri).to_pylist()}
    wanted = [next(s for s, each in splits.items() if each == split) for split in ("train", "held_out")]
    decoded, opened = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: decoded.append(1) or opened(*args, **options))
    block = read_block._function(uri, "shard-000000", wanted)
    assert sorted(block.samples) == sorted(wanted) and len(block.images) == len(decoded) == 2
    monkeypatch.setattr(sampling, "set_threads_and_device", lambda threads: "cpu")
    context = Context(recipe=recipe(home), fingerprints={}, leases={}, tracking_uri="", run_id="")
    seen = Evaluator(1, context, open_network(uris["large"], plan.store)).reference(block)
    assert {split: sums["emoji-evaluator"].index.tolist() for split, sums in seen.items()} == {
        splits[sample]: [sample] for sample in wanted
    }


def test_the_most_calls_of_a_sample_do_not_depend_on_who_ends_last() -> None:
    from flows.stages.evaluate.worker import Shares

    totals = []
    for order in ((26, 38), (38, 26)):
        total = Shares()
        for calls in order:
            total.merge(Shares(calls=calls, count=1))
        totals.append(total.calls)
    assert totals == [38, 38]


def test_the_recipes_own_network_has_its_floor_from_the_latents_table(
    trainings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from flows.stages import sampling
    from flows.stages.evaluate.worker import Chunk, Evaluator, Shares
    from storage.checkpoints import CheckpointManifest, save

    monkeypatch.setattr(sampling, "set_threads_and_device", lambda threads: "cpu")
    looked, write, sums = Event(), sampling.write_samples, Evaluator._sums

    def written(*row: Any) -> None:
        assert looked.wait(60), "samples are encoded while the detectors work, not before"
        write(*row)

    monkeypatch.setattr(sampling, "write_samples", written)
    monkeypatch.setattr(Evaluator, "_sums", lambda self, *what: looked.set() or sums(self, *what))
    config = NetworkConfig(2, 32, 2, latent_channels=12, latent_size=4, snippet_dim=6)
    context = trainings.job()
    fingerprints = context.fingerprints | {"samples": "a" * 12, "report": "b" * 12}
    manifest = CheckpointManifest(step=1, network=asdict(config), latent_mean=[0.0] * 12, latent_std=[1.0] * 12)
    tensors = {f"ema.{name}": value for name, value in Network(config).state_dict().items()}
    checkpoint = save(str(trainings.store.root) + "/own", 1, tensors, {}, manifest)
    evaluator = Evaluator(1, context.model_copy(update={"fingerprints": fingerprints}), checkpoint)
    ids = np.array([6, 8, 10])
    total = Shares()
    for number, ceiling in ((0, True), (1, False)):
        part = evaluator.run(Chunk("train", number, 3 * number + np.arange(3), ids, ceiling))
        assert bool(part.ceiling) == ceiling and part.floor["emoji-evaluator"].count == part.count == 3
        total.merge(part)
    assert total.samples["emoji-evaluator"].index.tolist() == list(range(6)) and total.calls == 1
    path = evaluator.context.artifact("samples").path("train-000001.tar")
    kept = [(row.number, row.snippet, row.calls) for row in read_samples(trainings.store, path)]
    assert kept == [(3, 6, 1), (4, 8, 1), (5, 10, 1)]
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "generate", lambda *_: pytest.fail("what is kept is not made again"))
        patch.setattr(Evaluator, "keep", lambda *_: pytest.fail("nor written again"))
        again = evaluator.run(Chunk("train", 1, np.array([3, 4, 5]), ids, False))
    for name, each in again.samples.items():
        assert np.array_equal(each.features("pool"), part.samples[name].features("pool")) and again.calls == part.calls
    other = Chunk("train", 1, np.array([3, 4, 5]), ids[::-1].copy(), False)
    assert evaluator._kept(other) is None  # samples of other snippets are not taken for these
    seeds = evaluator.over_seeds("train", ids[:2])["emoji-evaluator"]
    assert seeds.index.tolist() == (context.recipe.evaluate.samples + np.arange(8)).tolist()
    over_seeds = list(read_samples(trainings.store, evaluator.context.artifact("report").path("seeds-train.tar")))
    assert [row.snippet for row in over_seeds] == [6, 6, 6, 6, 8, 8, 8, 8]
    assert all((row.image != over_seeds[0].image).any() for row in over_seeds[1:4])  # by their noise alone
    near, far = (np.random.default_rng(seed).normal(size=(30, 6)) + seed for seed in (0, 1))
    assert evaluator.overlap(near, far) == overlap(near, far)
    detectors, tokenizer = evaluator.identities()
    assert set(detectors) == {"emoji-evaluator"} and tokenizer["name"] == "shipped:emoji-tokenizer"

    torch.save({"layer": torch.zeros(1)}, tmp_path / "foreign.pth")
    evaluate = context.recipe.evaluate.model_copy(update={"inception": str(tmp_path / "foreign.pth")})
    other = context.model_copy(update={"recipe": context.recipe.model_copy(update={"evaluate": evaluate})})
    with pytest.raises(ValueError, match=r"foreign\.pth is not the FID Inception network: \d+ tensors"):
        Evaluator(1, other, checkpoint).identities()  # by its first call, so that Ray passes the sentence on


def test_detectors_bear_the_names_of_their_weights(home: Path) -> None:
    evaluate = recipe(
        home, further_encoders=["timm:vit_small_patch14_dinov2.lvd142m@/weights/file.safetensors"]
    ).evaluate
    assert list(named_encoders(evaluate)) == ["emoji-evaluator", "vit_small_patch14_dinov2.lvd142m"]
    with pytest.raises(StageError, match="same name"):
        named_encoders(evaluate.model_copy(update={"further_encoders": ["/elsewhere/emoji-evaluator"]}))
    copies = evaluate.model_copy(update={"copy_detector": "onnx:sscd.onnx"})
    assert searched(copies) == ["emoji-evaluator", "sscd"]
    assert searched(copies.model_copy(update={"memorisation": False})) == ["emoji-evaluator"]
    with pytest.raises(StageError, match="another encoder of evaluate bear the name sscd"):
        searched(copies.model_copy(update={"further_encoders": ["onnx:/elsewhere/sscd.onnx"]}))
    with pytest.raises(StageError, match="nothing to measure with"):
        named_encoders(evaluate.model_copy(update={"encoder": "", "further_encoders": []}))


def test_copies_in_pixels_are_of_the_kept_samples_and_their_nearest(
    result: Result, plan: Plan, results: dict[str, Any]
) -> None:
    """The same figure from the pictures themselves, whoever shrank them."""
    nearest = json.loads(Path(result.artifacts["report"], "nearest.json").read_text())
    index = read_index(plan.artifact(IMAGES).uri).to_pylist()
    pictures = {p.sample: _small(p.image) for p in read_shard(plan.artifact(IMAGES).uri, "shard-000000")}
    rows = read_samples(plan.store, f"{result.artifacts['samples']}/train-000000.tar")
    samples = np.stack([_small(row.image) for row in rows])
    found = aligned_similarity(samples, np.stack([pictures[number] for number in nearest["train"]["nearest"]]))
    measured = results["samples of train"]["memorisation_copied_pixels-emoji-evaluator"]
    assert measured["value"] == (found > measured["details"]["similarity"]).mean()
    held_out = [pictures[row["sample"]] for row in index if row["split"] == "held_out"]
    training = [pictures[row["sample"]] for row in index if row["split"] == "train"]
    most = [aligned_similarity(np.stack([each] * len(training)), np.stack(training)).max() for each in held_out]
    assert 0 < measured["details"]["similarity"] <= max(most) + 1e-9


def test_copies_by_a_detector_of_its_own_are_those_nearest_in_its_vectors(
    result: Result, plan: Plan, results: dict[str, Any]
) -> None:
    """Its vector is the picture's mean colour."""
    index = read_index(plan.artifact(IMAGES).uri).to_pylist()
    pictures = {p.sample: _colour(p.image) for p in read_shard(plan.artifact(IMAGES).uri, "shard-000000")}
    training = np.stack([pictures[row["sample"]] for row in index if row["split"] == "train"])
    sums = {
        split: read_sums(Path(result.artifacts["statistics"], f"{split}.npz").read_bytes())
        for split in ("train", "held_out")
    }
    assert set(sums["held_out"]) - set(sums["train"]) == {"means"}, (
        "it compares no sets, so of training pictures no few"
    )
    held_out = np.stack([pictures[number] for number in sums["held_out"]["means"].index])
    rows = read_samples(plan.store, f"{result.artifacts['samples']}/train-000000.tar")
    samples = np.stack([_colour(row.image) for row in rows])
    numbers = results["samples of train"]
    ratio, copied = numbers["memorisation_ratio-means"], numbers["memorisation_copied-means"]
    assert ratio["value"] == pytest.approx(np.median(_to(training, samples)) / np.median(_to(training, held_out)), 1e-3)
    expected = (_to(training, samples) < copied["details"]["distance"]).mean()
    assert copied["value"] == expected and copied["protocol"]["resize"] == "bilinear to 64 px, bytes, output vector"
    [line] = [line for line in result.details["lines"] if line.startswith("nearest training pictures")]
    assert f", by means {expected:.0%})" in line


def _colour(image: np.ndarray) -> np.ndarray:
    return image.reshape(-1, 3).mean(axis=0)


def _to(training: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance of each to the nearest."""
    return np.linalg.norm(others[:, None] - training, axis=-1).min(axis=1)


def _small(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BOX))
