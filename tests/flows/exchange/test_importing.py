from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from flows.cli import app
from flows.exchange import importing_bank
from flows.exchange.exporting import export_network, export_statistics
from flows.exchange.importing import import_network, import_tokenizer, statistics_beside
from flows.exchange.importing_bank import import_bank
from gmem.metrics.sums import FeatureSums, write_sums
from gmem.network import Network
from gmem.published import read_network
from gmem.settings import NetworkConfig
from gmem.tokenizer import load_tokenizer
from storage.checkpoints import open_checkpoint
from storage.ids import FIRST_FOREIGN_ID
from storage.store import Store
from storage.tables.bank import Bank
from storage.tables.latents import LatentsWriter, write_fragments
from storage.tracking.access import client
from storage.tracking.tracking import Tracking

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"
REST: dict[str, Any] = {"latent_channels": 12, "latent_size": 8, "snippet_dim": 16}
CONFIG = NetworkConfig(6, 32, 2, projection_dim=8, projection_hidden=8, **REST)

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return Store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def weights() -> Tensors:
    torch.manual_seed(0)
    return dict(Network(CONFIG).state_dict())


@pytest.fixture(scope="module")
def published(weights: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as it is published: average and trained weights, the names as data parallelism leaves them."""
    trained = {f"module.{name}": value + 0.5 for name, value in weights.items()}
    path = tmp_path_factory.mktemp("published") / "GMem-T 1.pth"
    torch.save({"ema": weights, "model": trained, "config": {"seed": 0}}, path)
    return path


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("statistics") / "latents_stats.pt"
    torch.save({"mean": torch.arange(12.0).view(1, 12, 1, 1), "std": torch.full((1, 12, 1, 1), 2.0)}, path)
    return path


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in b)


def one_sentence(error: pytest.ExceptionInfo[ValueError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- networks --------------------------------------------------------------------------------------------------------


def test_the_latent_statistics_in_a_folder_are_taken(tmp_path: Path, statistics: Path) -> None:
    assert statistics_beside(tmp_path / "nowhere") is None and statistics_beside(statistics) is None
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "latents_stats.pt").write_bytes(statistics.read_bytes())
    assert statistics_beside(folder) == str(folder / "latents_stats.pt")


def test_a_network_becomes_a_checkpoint_and_a_registered_model(
    store: Store, published: Path, statistics: Path, weights: Tensors
) -> None:
    imported = import_network(published, store, latent_stats=str(statistics))
    assert imported.fresh and imported.details["size"] == "6x32" and imported.counts["tensors"] == len(weights)
    checkpoint = open_checkpoint(imported.uri)
    about = checkpoint.manifest
    assert NetworkConfig(**about.network) == CONFIG
    assert (about.latents, about.bank, about.patches, about.tokenizer, about.encoder) == (None, None, None, {}, {})
    assert about.latent_mean == list(range(12)) and about.latent_std == [2.0] * 12
    artifact = store.at(imported.artifact)
    manifest = artifact.manifest()
    assert manifest is not None and manifest.kind == "weights" and manifest.lease == 1 and artifact.holder() is None
    assert manifest.name == "GMem-T-1" and manifest.mlflow_run == about.mlflow_run

    mlflow = client(Tracking.open(None, store, "imports").uri)
    assert mlflow.get_run(manifest.mlflow_run).info.status == "FINISHED"
    version = mlflow.get_model_version("gmem-GMem-T-1", str(imported.details["model_version"]))
    assert version.tags["checkpoint"] == store.relative(imported.uri)
    assert version.tags["sha256"] == about.files["ema.safetensors"].sha256

    again = import_network(published, store, latent_stats=str(statistics))
    assert not again.fresh and (again.uri, again.details) == (imported.uri, imported.details)


def test_a_training_can_start_from_it(store: Store, published: Path, statistics: Path, weights: Tensors) -> None:
    from flows.models.generation import load_into

    uri = import_network(published, store, latent_stats=str(statistics)).uri
    network = Network(CONFIG)
    load_into(network, open_checkpoint(uri))
    assert same(dict(network.state_dict()), weights)
    with pytest.raises(ValueError, match=r"train\.start_from .* is another network: \d+ tensors"):
        wider = Network(replace(CONFIG, snippet_dim=CONFIG.snippet_dim + 1))
        load_into(wider, open_checkpoint(uri), "train.start_from")
    for head in (0, 12):  # only training uses it, so that it may be another
        other = Network(replace(CONFIG, projection_dim=head))
        own = {name: value.clone() for name, value in other.state_dict().items() if name.startswith("projector.")}
        load_into(other, open_checkpoint(uri))
        assert all(torch.equal(v, own.get(n, weights.get(n, v))) for n, v in other.state_dict().items())


def test_a_few_steps_of_training_from_it(trainings: Any, tmp_path: Path) -> None:
    """Published files are without the head of the recipe's alignment, and often in half precision."""
    from flows.models.resolve import network_identity
    from flows.stages.train.setup import (
        batch_of,
        components_of,
        make_network,
        network_config,
        open_data,
    )
    from gmem.batch import draw
    from gmem.learner import Learner
    from storage.tables.order import BatchOrder

    job = trainings.job()
    data = open_data(job, "train")
    config = network_config(job.recipe, data)
    torch.manual_seed(7)
    published = Network(replace(config, projection_dim=0))
    path = saved({"ema": {n: v.half() for n, v in published.state_dict().items()}}, tmp_path / "start.pt")
    artifact = import_network(path, job.store).artifact

    job = trainings.job(start_from=artifact)
    network = make_network(job.recipe, data)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    assert network.config.projection_dim > 0 and start["blocks.0.attn.qkv.weight"].dtype == torch.float32
    assert all(torch.equal(start[name], value.half().float()) for name, value in published.state_dict().items())
    learner = Learner(network, job.recipe.train, components=components_of(data))
    order = BatchOrder(0, data.pictures, job.recipe.train.batch)
    for step in range(3):
        batch = batch_of(job.recipe, data, order.ids(step))
        draws = draw(learner.config.seed, step, 5, tuple(batch.latent.shape[1:]), batch.snippet.shape[1], slice(0, 5))
        assert learner.step(batch, draws, 5)["skipped"] == 0
    assert (learner.steps, learner.updates) == (3, 3)
    assert not torch.equal(network.state_dict()["blocks.0.attn.qkv.weight"], start["blocks.0.attn.qkv.weight"])
    assert len(network_identity(artifact, job.store)) == 16

    other = replace(config, snippet_scale=3.0)
    with pytest.raises(ValueError, match=r"its snippet_scale is 1\.0, not 3\.0; set network\.snippet_scale"):
        from flows.models.generation import load_into

        load_into(Network(other), open_checkpoint(import_network(path, job.store).uri), "train.start_from")


def test_pictures_are_sampled_from_it(store: Store, published: Path, statistics: Path, tmp_path: Path) -> None:
    from flows.engine.stage import Plan
    from flows.recipe.files import load
    from flows.stages.bank.stage import BANK

    artifact = Plan(load("emoji", {"store": store.root})).artifact(BANK)
    bank = Bank.create(artifact.uri, 16, {"name": "other", "sha256": "0"})
    bank.append(np.random.default_rng(0).normal(size=(3, 16)), "external", bank.encoder, splits=["train"] * 3)
    with artifact.lease("test") as lease:
        artifact.commit(artifact.describe(lease))
    out = tmp_path / "samples.png"

    def sampled(uri: str, *more: str) -> Any:
        arguments = ["sample", "emoji", "-n", "2", "--network", uri, "--store", store.root, "--out", str(out)]
        return CliRunner().invoke(app, [*arguments, "--set", "sample.steps=2", "--json", *more])

    found = sampled(import_network(published, store, latent_stats=str(statistics)).uri)
    assert found.exit_code == 0, found.exception
    assert out.read_bytes().startswith(b"\x89PNG")
    without = sampled(import_network(published, store).uri)
    assert isinstance(without.exception, ValueError) and "no latent statistics" in str(without.exception)

    published_bank = import_bank(saved(torch.randn(9, 16), tmp_path / "published.pth"), store)
    whole = import_network(published, store, latent_stats=str(statistics)).artifact
    found = sampled(whole, "--bank", published_bank.uri)
    assert found.exit_code == 0, found.exception
    assert min(json.loads(found.stdout.splitlines()[-1])["ids"]) >= FIRST_FOREIGN_ID
    info = CliRunner().invoke(app, ["bank", "info", "--bank", published_bank.uri, "--store", store.root, "--json"])
    assert json.loads(info.stdout.splitlines()[-1])["by_origin"] == {"imported": 9}
    narrow = import_bank(saved(torch.randn(9, 8), tmp_path / "narrow.pth"), store)
    refused = sampled(whole, "--bank", narrow.uri)
    assert isinstance(refused.exception, ValueError) and "takes snippets of 16 numbers" in str(refused.exception)
    absent = sampled(whole, "--bank", "bank/none-000000000000")
    assert isinstance(absent.exception, ValueError) and "no finished bank" in str(absent.exception)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_goes_in_comes_out_bit_for_bit(store: Store, weights: Tensors, tmp_path: Path, dtype: torch.dtype) -> None:
    ema = {name: value.to(dtype) for name, value in weights.items()}
    trained = {name: value + 1 for name, value in ema.items()}
    path = saved({"ema": ema, "model": trained}, tmp_path / f"{dtype}.pt".replace("torch.", "of_"))
    imported = import_network(path, store)

    export_network(imported.uri, store, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(back["ema"]) == list(weights) and same(back["ema"], ema)
    assert same(back["model"], {f"module.{name}": value for name, value in trained.items()})
    assert NetworkConfig(**back["config"]) == CONFIG
    assert (tmp_path / "back.pth").stat().st_size < 1.05 * path.stat().st_size

    export_network(imported.uri, store, tmp_path / "hub")
    assert same(load_file(tmp_path / "hub" / "diffusion_pytorch_model.safetensors"), ema)
    assert read_network(tmp_path / "hub").config == CONFIG
    with pytest.raises(ValueError, match="is there already"):
        export_network(imported.uri, store, tmp_path / "hub")


def test_an_exported_folder_is_imported_with_its_statistics(
    store: Store, published: Path, statistics: Path, tmp_path: Path, weights: Tensors
) -> None:
    uri = import_network(published, store, latent_stats=str(statistics)).uri
    names = {file.name for file in export_network(uri, store, tmp_path / "hub")}
    assert names == {"checkpoint.pt", "config.json", "diffusion_pytorch_model.safetensors", "latents_stats.pt"}
    again = import_network(tmp_path / "hub", store, "again", str(tmp_path / "hub" / "latents_stats.pt"))
    assert open_checkpoint(again.uri).manifest.latent_mean == list(range(12))


def test_a_latents_table_tells_statistics_and_tokenizer(store: Store, published: Path) -> None:
    artifact, identity = store.artifact("latents", "emoji", "0" * 12), {"name": "small", "sha256": "ab"}
    latents = np.random.default_rng(0).normal(3, 2, (4, 12, 8, 8))
    writer = LatentsWriter(artifact.uri, (12, 8, 8), identity)
    ids = np.arange(0, 8, 2)
    writer.commit([write_fragments(artifact.uri, "s", ids, [None] * 4, latents)])
    writer.finish_latents(ids)
    for source in (artifact.uri, artifact.folder, f"{artifact.uri}/latents.lance"):
        about = open_checkpoint(import_network(published, store, "table", source).uri).manifest
        assert about.tokenizer == identity
        np.testing.assert_allclose(about.latent_mean, latents.mean((0, 2, 3)), atol=1e-3)
        np.testing.assert_allclose(about.latent_std, latents.std((0, 2, 3)), atol=1e-3)


def test_a_file_of_another_network_is_reported_in_full(store: Store, weights: Tensors, tmp_path: Path) -> None:
    foreign = {name: value for name, value in weights.items() if "norm1" not in name}
    path = saved({"ema": foreign}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match=r"6 missing tensors .*blocks\.2\.norm1\.weight; …") as error:
        import_network(path, store)
    report = Path(one_sentence(error).rpartition(" ")[2])
    assert report.read_text().splitlines()[0] == str(path)
    assert len(report.read_text().splitlines()) == 1 + 6
    report.unlink()
    assert [file.name for file in tmp_path.iterdir()] == ["foreign.pt"]
    assert not [a for a in store.artifacts("weights") if a.name == "foreign"]


def test_statistics_that_do_not_fit_are_refused(store: Store, published: Path, tmp_path: Path) -> None:
    four = saved({"mean": torch.zeros(4), "std": torch.ones(4)}, tmp_path / "four.pt")
    for source, reason in ((four, "4 means"), (tmp_path / "absent.pt", "no file"), (tmp_path, "no latents table")):
        with pytest.raises(ValueError, match=reason) as error:
            import_network(published, store, latent_stats=str(source))
        one_sentence(error)


# --- tokenizers ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not GOLDEN.exists(), reason=f"no golden numbers at {GOLDEN}")
def test_a_tokenizer_decodes_as_the_published_one(store: Store, tmp_path: Path) -> None:
    golden = load_file(GOLDEN / "vae_tiny.safetensors")
    weights = {k.removeprefix("weights/"): v for k, v in golden.items() if k.startswith("weights/")}
    path = saved({"state_dict": weights | {"loss.logvar": torch.zeros(1)}}, tmp_path / "vae.ckpt")
    imported = import_tokenizer(path, store)
    tokenizer = load_tokenizer(imported.uri)
    assert tokenizer.identity["sha256"] == imported.details["sha256"]
    assert (tokenizer.factor, tokenizer.channels) == (imported.details["factor"], imported.details["channels"])
    latents = tokenizer.encode(golden["input/image"])
    # values reach 2.4, and the golden ones are themselves 2e-5 from those that float64 gives
    assert (tokenizer.decode(latents) - golden["output/decoded_mean"]).abs().max() < 1e-4


# --- banks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_bank_becomes_a_table(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(importing_bank, "CHUNK", 30)
    snippets = torch.randn(100, 16).to(dtype)
    path = saved(snippets, tmp_path / f"bank-{dtype}.pth")
    (tmp_path / "labels.txt").write_text("".join(f"{n % 7}\n" for n in range(99)) + "\n")
    (tmp_path / "keys.txt").write_text("\n".join(f"n{n}.JPEG" for n in range(100)))
    imported = import_bank(path, store, tmp_path / "labels.txt", tmp_path / "keys.txt")
    bank = Bank(imported.artifact)
    info = bank.info()
    assert (info.rows, info.dim, info.by_origin, info.by_split) == (100, 16, {"imported": 100}, {"train": 100})
    assert info.by_label["None"] == 1 and imported.details["version"] == info.version
    ids = list(range(FIRST_FOREIGN_ID, FIRST_FOREIGN_ID + 100))
    np.testing.assert_array_equal(bank.snippets(ids), snippets.half().numpy())
    (row,) = bank.rows([ids[64]], ["key", "label"]).to_pylist()
    assert (row["key"], row["label"]) == ("n64.JPEG", 1)
    assert int(bank.search(ids[64], 1)["id"][0].as_py()) == ids[64]
    assert not import_bank(path, store, tmp_path / "labels.txt", tmp_path / "keys.txt").fresh


def test_an_interrupted_import_goes_on(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing_bank, "CHUNK", 10)
    path = saved(torch.randn(35, 8), tmp_path / "long.pth")
    keys = tmp_path / "keys.txt"
    keys.write_text("\n".join(map(str, range(35))))
    written: list[str] = []
    real = importing_bank.write_fragments

    def failing(artifact: str, shard: str, rows: Any) -> Any:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard)
        return real(artifact, shard, rows)

    monkeypatch.setattr(importing_bank, "write_fragments", failing)
    with pytest.raises(KeyboardInterrupt):
        import_bank(path, store, keys=keys)
    monkeypatch.setattr(importing_bank, "write_fragments", real)
    bank = Bank(import_bank(path, store, keys=keys).artifact)
    table = bank.dataset.to_table(columns=["id", "key", "shard"]).sort_by("id").to_pylist()
    assert [row["key"] for row in table] == list(map(str, range(35)))
    assert written == ["import-000000", "import-000001"] and table[-1]["shard"] == "import-000003"


def test_statistics_are_exported_from_another_store(tmp_path: Path) -> None:
    artifact = Store(str(tmp_path / "other")).artifact("statistics", "some", "0" * 12)
    found = FeatureSums(("pool", "spatial"), ())
    found.update({name: np.random.default_rng(0).normal(size=(9, 4)) for name in ("pool", "spatial")}, np.arange(9))
    artifact.store.write_bytes(artifact.path("train.npz"), write_sums({"inception": found}))
    assert export_statistics(artifact.uri, Store("s3://bucket/runs"), tmp_path / "out.npz") == 9


def test_columns_that_do_not_fit_the_bank_are_refused(store: Store, tmp_path: Path) -> None:
    path, column = saved(torch.randn(3, 4), tmp_path / "small.pth"), tmp_path / "column.txt"
    column.write_text("1\n2\n")
    with pytest.raises(ValueError, match="has 2 lines, but the bank has 3 rows") as error:
        import_bank(path, store, keys=column)
    one_sentence(error)
    column.write_text("1\ncat\n2\n")
    with pytest.raises(ValueError, match="'cat' in line 2"):
        import_bank(path, store, labels=column)
    column.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no text file"):
        import_bank(path, store, labels=column)
    broken = saved(torch.full((3, 4), float("nan")), tmp_path / "nan.pth")
    with pytest.raises(ValueError, match="row 0 of the bank holds NaN"):
        import_bank(broken, store)


# --- the command line ------------------------------------------------------------------------------------------------


def test_the_commands_import_and_export(store: Store, tmp_path: Path) -> None:
    def done(*arguments: str) -> dict[str, Any]:
        found = CliRunner().invoke(app, [*arguments, "--json"])
        assert found.exit_code == 0, found.exception
        return json.loads(found.stdout.splitlines()[-1])

    small = saved(Network(NetworkConfig.of("T", **REST)).state_dict(), tmp_path / "small.pt")
    network = done("import", "network", str(small), "--name", "mine", "--store", store.root)
    assert network["fresh"] and network["size"] == "T" and "weights/mine-" in network["uri"]
    files = done("export", "network", network["uri"], str(tmp_path / "out.pt"))["files"]
    assert files == [str(tmp_path / "out.pt")]
    bank = done("import", "bank", str(saved(torch.randn(5, 4), tmp_path / "b.pth")), "--store", store.root)
    assert bank["rows"] == 5 and len(Bank(bank["uri"])) == 5
