from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lance.dataset import LanceDataset, LanceOperation

from storage import checkpoints
from storage.checkpoints import CheckpointManifest
from storage.ids import FIRST_FOREIGN_ID
from storage.retention import clean as cleaning
from storage.retention.checkpoints import pin
from storage.retention.clean import Cleaning, clean
from storage.retention.inventory import Entry, usage
from storage.retention.policy import Asked
from storage.store import Artifact, Store, StoreError
from storage.tables import bank_rows, fragments, latents
from storage.tables.bank import Bank
from storage.tables.bank_rows import make_rows
from storage.tables.bank_writer import BankWriter
from storage.tables.latents import Latents, LatentsWriter

SHAPE, DIM, ENCODER, TOKENIZER = (2, 4, 4), 6, {"name": "vit", "sha256": "ab"}, {"name": "vae"}
IDS = np.arange(8)


def latents_of(artifact: Artifact, shard: str = "shard-0") -> dict[str, Any]:
    return latents.write_fragments(
        artifact.uri, shard, IDS, [None] * 8, np.random.default_rng(0).normal(size=(8, *SHAPE))
    )


def rows(n: int = 8) -> Any:
    return make_rows(np.arange(n), np.random.default_rng(1).normal(size=(n, DIM)), "dataset", shard="shard-0")


def finish(
    artifact: Artifact, lease: Any, version: Any = None, age: float = 0, about: Any = None, **inputs: Artifact
) -> None:
    created = datetime.now(UTC) - timedelta(days=age)
    named = {kind: each.reference((m := each.manifest()) and m.details.get("version")) for kind, each in inputs.items()}
    about = {"details": {"version": version}} | (about or {})
    artifact.commit(artifact.describe(lease, created=created, inputs=named, **about))


def project(root: str, number: int = 0, age: float = 0, killed: bool = False) -> dict[str, Artifact]:
    """A chain of artifacts, as the stages leave them; with a fragment of a run that was `killed` before in the bank."""
    store = Store(root)
    made = {kind: store.artifact(kind, "some", f"{number:012x}") for kind in ("images", "latents", "bank", "training")}
    made["report"] = store.artifact("report", "some", f"{number:012x}")
    with made["images"].lease("t") as lease:
        store.write_bytes(made["images"].path("shard-000000.tar"), b"x" * 1000)
        finish(made["images"], lease, age=age)
    with made["latents"].lease("t") as lease:
        writer = LatentsWriter(made["latents"].uri, SHAPE, TOKENIZER, lease.number)
        writer.commit([latents_of(made["latents"])])
        finish(made["latents"], lease, writer.finish_latents(IDS).version, age, images=made["images"])
    with made["bank"].lease("t") as lease:
        bank = BankWriter(made["bank"].uri, DIM, ENCODER, lease.number)
        if killed:
            bank_rows.write_fragments(made["bank"].uri, "shard-9", rows())
            time.sleep(1.1 if root.startswith("s3") else 0.01)  # a bucket's times are whole seconds
        bank.commit([bank_rows.write_fragments(made["bank"].uri, "shard-0", rows())])
        finish(made["bank"], lease, bank.finish_bank(IDS).version, age, images=made["images"])
    with made["training"].lease("t") as lease:
        for step in (1, 2, 3, 4):
            save(made["training"], step, loss=abs(step - 2))
        finish(made["training"], lease, 4, age, latents=made["latents"], bank=made["bank"])
    with made["report"].lease("t") as lease:
        made["report"].commit(
            made["report"].describe(
                lease,
                created=datetime.now(UTC) - timedelta(days=age),
                parameters={"step": 3},
                inputs={"training": made["training"].reference()},
                details={"pictures": {"grid": made["report"].path("grid.png")}},
            )
        )
    return made


def save(training: Artifact, step: int, loss: float) -> None:
    manifest = CheckpointManifest(step=step, network={}, held_out_loss=loss)
    checkpoints.save(training, step, {"network.w": torch.zeros(100), "ema.w": torch.zeros(100)}, {}, manifest)


def told(done: Cleaning) -> list[tuple[str, str]]:
    return [(removal.folder.split("-")[0], removal.what) for removal in done.removals]


@pytest.mark.parametrize("root", ["folder", "s3"], indirect=True)
def test_leftovers_go_and_results_stay(root: str) -> None:
    store, made = Store(root), project(root, killed=True)
    latents_of(made["latents"], "shard-9")  # written by a worker whose driver died before it could commit
    store.write_bytes(made["training"].path("checkpoints", "step-00000005", "ema.safetensors"), b"x" * 50)
    store.write_bytes(made["images"].path("index.parquet.0a1b2c3d.part"), b"x" * 70)
    begun = store.artifact("latents", "some", "f" * 12)
    with begun.lease("another run") as lease:
        LatentsWriter(begun.uri, SHAPE, TOKENIZER, lease.number).commit([latents_of(begun)])
        assert [row["state"] for row in usage(store) if row["artifact"] == begun.folder] == ["building"]

    before = sum(store.files.walk(root).values())
    planned = clean(store)
    assert sum(store.files.walk(root).values()) == before, "a dry run removes nothing"
    assert told(planned) == [
        ("training/some", "checkpoint step-00000005"),
        ("bank/some", "1 files of bank.lance"),
        ("latents/some", "1 files of latents.lance"),
        ("latents/some", "all of it"),
        ("images/some", "1 half-written files"),
    ]
    done = clean(store, remove=True)
    assert told(done) == told(planned) and done.bytes == planned.bytes > 1000
    leases = 1000  # what they say grows and shrinks
    assert abs(before - sum(store.files.walk(root).values()) - done.bytes) < leases

    assert clean(store, remove=True).removals == []
    assert len(Latents.open(made["latents"].uri)) == len(Bank(made["bank"].uri)) == 8
    assert checkpoints.latest(made["training"]).step == 4 and all(each.complete for each in made.values())
    assert not begun.complete and begun.folder not in [row["artifact"] for row in usage(store)]
    with begun.lease("again") as lease:
        assert lease.number > 1, "a run thought dead still cannot commit into it"


def test_what_somebody_is_building_is_left_alone(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    artifact = store.artifact("latents", "some", "0" * 12)
    with artifact.lease("a long run", ttl=1.0):
        store.write_bytes(artifact.path("x"), b"data")
        done = clean(store, keep=1, remove=True)
        assert done.removals == [] and store.files.exists(artifact.path("x"))
    assert "is being built by a long run" in done.notes[0]
    assert "nothing superseded is removed while something is being built" in done.notes[1]
    assert told(clean(store, remove=True)) == [("latents/some", "all of it")]


def test_superseded_artifacts_go_only_when_asked_and_never_what_a_kept_one_rests_on(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    old, new = project(store.root, 1, age=9), project(store.root, 2, age=1)
    with (mixed := store.artifact("training", "mixed", "3" * 12)).lease("t") as lease:
        finish(mixed, lease, latents=old["latents"], bank=new["bank"])
    with (weights := store.artifact("weights", "vae", "4" * 12)).lease("t") as lease:
        finish(weights, lease, age=99)
    with (imported := store.artifact("bank", "imported", "5" * 12)).lease("t") as lease:
        finish(imported, lease, age=99)
    assert clean(store, remove=True).removals == []
    assert clean(store, keep=4, remove=True).bytes == clean(store, days=10, keep=1, remove=True).bytes == 0

    done = clean(store, keep=1, remove=True)
    assert {f for f, what in told(done) if what == "all of it"} == {"report/some", "training/some", "bank/some"}
    assert not old["training"].complete and not old["bank"].complete and not old["report"].complete
    assert all(each.complete for each in (*new.values(), mixed, weights, imported, old["latents"], old["images"]))
    steps = {c.step for c in checkpoints.all_checkpoints(new["training"])}
    assert steps == {2, 3, 4}, "the best, the one a report was made with, the newest"


def test_what_was_used_by_address_stays(tmp_path: Path) -> None:
    """A network started from, evaluated or guiding, and a bank evaluated with, are no inputs by fingerprint."""
    store = Store(str(tmp_path))
    old, new = project(store.root, 1, age=9), project(store.root, 2, age=1)
    used = {"network": checkpoints.at(old["training"], 1).uri, "bank": old["bank"].uri}
    with (report := store.artifact("report", "other", "7" * 12)).lease("t") as lease:
        finish(report, lease, about={"details": {"used": used}})
    guided = {"parameters": {"sample": {"guide": "earlier:1"}}}
    with (samples := store.artifact("samples", "some", "8" * 12)).lease("t") as lease:
        finish(samples, lease, about=guided, training=new["training"])
    unfinished = store.artifact("training", "unfinished", "9" * 12)
    start = CheckpointManifest(step=1, network={}, details={"start_from": checkpoints.at(old["training"], 3).uri})
    checkpoints.save(unfinished, 1, {"ema.w": torch.zeros(1)}, {}, start)
    for _ in range(2):  # the old report goes first, and then what it alone was made with
        clean(store, keep=1, remove=True)
    assert old["bank"].complete and old["training"].complete and not old["report"].complete
    assert [c.step for c in checkpoints.all_checkpoints(old["training"])] == [1, 2, 3, 4]
    assert [c.step for c in checkpoints.all_checkpoints(new["training"])] == [1, 2, 3, 4]


def test_a_run_that_begins_meanwhile_keeps_what_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    old, _ = project(store.root, 1, age=9), project(store.root, 2, age=1)
    judged = cleaning.superseded
    runs: list[Artifact] = []

    def meanwhile(entries: dict[str, Entry], asked: Asked) -> set[str]:
        doomed = judged(entries, asked)
        if not runs:  # just after the first judgement
            runs.append(store.artifact("training", "late", "b" * 12))
            with runs[0].lease("a short run") as lease:
                finish(runs[0], lease, bank=old["bank"])
        return doomed

    monkeypatch.setattr(cleaning, "superseded", meanwhile)
    clean(store, keep=1, remove=True)
    assert old["bank"].complete and not old["training"].complete


def test_while_a_run_is_under_way_that_began_meanwhile_nothing_superseded_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    old, _ = project(store.root, 1, age=9), project(store.root, 2, age=1)
    judged = cleaning.superseded
    with ExitStack() as stack:

        def meanwhile(entries: dict[str, Entry], asked: Asked) -> set[str]:
            late = store.artifact("training", "late", "b" * 12)
            stack.enter_context(late.lease("a long run", ttl=1.0))
            return judged(entries, asked)

        monkeypatch.setattr(cleaning, "superseded", meanwhile)
        done = clean(store, keep=1, remove=True)
    assert all(each.complete for each in old.values()) and done.removals == []
    assert "training/late-bbbbbbbbbbbb is being built by now" in done.notes[0]


def test_pinned_checkpoints_stay_as_long_as_what_they_are_pinned_by(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    old, new = project(store.root, 1, age=9), project(store.root, 2, age=1)
    for step in (5, 6, 7):
        save(new["training"], step, loss=step)
    pin(checkpoints.at(new["training"], 4), new["report"].folder)
    pin(checkpoints.at(new["training"], 5), "report/some-" + "a" * 12)  # gone by now
    pin(checkpoints.at(new["training"], 6), "registered")
    pin(checkpoints.at(old["training"], 4), "registered")
    clean(store, keep=1, remove=True)
    assert [c.step for c in checkpoints.all_checkpoints(new["training"])] == [2, 3, 4, 6, 7]
    clean(store, keep=1, remove=True)
    assert [c.step for c in checkpoints.all_checkpoints(old["training"])] == [2, 4], "the report is gone by now"
    assert old["training"].complete and old["bank"].complete and not old["report"].complete


def test_versions_of_a_bank_go_by_age_unless_tagged_or_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    made = project(store.root)
    bank = Bank(made["bank"].uri)
    named = bank.version
    bank.append(np.ones((2, DIM)), "external", ENCODER)
    tagged = bank.tag("before-the-second")
    bank.append(np.ones((3, DIM)), "external", ENCODER)
    revision = bank.content_revision
    assert clean(store, days=1).removals == []
    (removal,) = [r for r in clean(store, days=0, remove=True).removals if r.folder.startswith("bank")]
    assert removal.what.endswith("versions of bank.lance") and removal.bytes > 0

    bank = Bank(made["bank"].uri)
    left = {version["version"] for version in bank.dataset.versions()}
    assert {named, tagged, bank.version} <= left and len(left) <= 4
    assert len(bank) == 13 and len(Bank(bank.artifact, "before-the-second")) == 10
    assert len(Bank(bank.artifact, named)) == 8
    assert bank.content_revision == revision, "no row changed"
    assert bank.append(np.ones((1, DIM)), "external", ENCODER)[0] == FIRST_FOREIGN_ID + 5


def test_files_of_an_append_that_is_under_way_stay_and_very_old_ones_go(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    bank = Bank(project(store.root)["bank"].uri)
    described = bank_rows.write_fragments(bank.artifact, "", rows(2))  # there, and not committed yet
    assert clean(store, remove=True).removals == []
    operation = LanceOperation.Append(fragments.from_description(described))
    LanceDataset.commit(bank_rows.table_uri(bank.artifact), operation, read_version=bank.version)
    bank.refresh()
    assert len(bank.dataset.to_table()) == 10

    (file,) = bank_rows.write_fragments(bank.artifact, "", rows(2))["fragments"][0]["files"]
    path = Path(bank_rows.table_uri(bank.artifact), "data", file["path"])
    os.utime(path, (time.time() - 8 * 86_400,) * 2)
    assert told(clean(store, remove=True)) == [("bank/some", "1 files of bank.lance")]
    assert not path.exists() and len(bank.dataset.to_table()) == 10


def test_nothing_outside_the_root_is_touched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside, root = tmp_path / "outside", tmp_path / "runs"
    (outside / "data").mkdir(parents=True)
    (outside / "data" / "precious.bin").write_bytes(b"x" * 500)
    store, made = Store(str(root)), project(str(root))
    linked = root / "latents" / f"linked-{'a' * 12}"
    linked.symlink_to(outside)
    with (begun := store.artifact("images", "begun", "b" * 12)).lease("t"):
        store.write_bytes(begun.path("own"), b"own")
    Path(begun.path("linked")).symlink_to(outside)
    Path(made["images"].path("x.0a1b2c3d.part")).symlink_to(outside / "data" / "precious.bin")
    rows_there = {row["artifact"]: row for row in usage(store)}
    assert rows_there[f"latents/linked-{'a' * 12}"]["state"] == "elsewhere"
    done = clean(store, keep=1, days=0, remove=True)
    assert any("behind a link" in note for note in done.notes)
    assert ("images/begun", "all of it") in told(done)
    assert (outside / "data" / "precious.bin").read_bytes() == b"x" * 500 and linked.is_symlink()
    assert not Path(begun.path("linked")).exists()


def test_what_is_damaged_stays_for_a_person_to_look_at(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    made = project(store.root)
    manifest = Path(made["training"].path("manifest.json"))
    manifest.write_bytes(manifest.read_bytes()[:-20])
    versions = sorted(Path(latents.table_uri(made["latents"].uri), "_versions").glob("*.manifest"))
    versions[0].write_bytes(b"half")
    done = clean(store, keep=1, days=0, remove=True)
    assert not any(r.folder.startswith(("training", "latents")) for r in done.removals)
    assert any("damaged manifest: left alone" in note for note in done.notes)
    assert any("newest version is damaged" in note for note in done.notes), done.notes
    assert all(made[kind].complete for kind in ("images", "latents", "bank"))


def test_keep_and_age_must_make_sense(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep at least 1"):
        clean(Store(str(tmp_path)), keep=0)
    with pytest.raises(ValueError, match="no age"):
        clean(Store(str(tmp_path)), days=-1)


def test_a_table_of_another_format_is_refused_in_a_sentence(tmp_path: Path) -> None:
    made = project(str(tmp_path))
    for version, what in (("0", "is read no more"), ("7", "reads up to 1: update it")):
        dataset = fragments.open_table(latents.table_uri(made["latents"].uri))
        dataset.update_schema_metadata({"format_version": version})
        with pytest.raises(StoreError, match=what):
            Latents.open(made["latents"].uri)


def test_a_bank_that_has_grown_gets_a_lost_manifest_back(tmp_path: Path) -> None:
    made = project(str(tmp_path))
    bank = Bank(made["bank"].uri)
    bank.append(np.ones((2, DIM)), "external", ENCODER)
    revision = bank.content_revision
    with made["bank"].lease("again") as lease:
        writer = BankWriter(made["bank"].uri, DIM, ENCODER, lease.number)
        assert set(writer.done) == {"shard-0"}
        writer.finish_bank(IDS)
    bank = Bank(made["bank"].uri)
    assert len(bank) == 10 and bank.content_revision == revision


def test_the_commands(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from flows.cli import app

    store, made = Store(str(tmp_path)), project(str(tmp_path))
    store.write_bytes(made["images"].path("shard.tar.0a1b2c3d.part"), b"x" * 70)

    def said(*words: str) -> Any:
        result = CliRunner().invoke(app, ["store", *words, "--store", store.root, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout.strip().splitlines()[-1])

    about = said("usage")
    by_name = {row["artifact"]: row for row in about["artifacts"]}
    assert by_name[made["images"].folder]["used_by"] == [made["latents"].folder, made["bank"].folder]
    assert by_name[made["report"].folder]["used_by"] == [] and about["bytes"] > 3000
    assert said("clean")["removed"] is False
    assert said("clean", "--yes")["bytes"] == 70
    assert (
        said("clean", "--yes", "--keep", "1", "--older-than", "0")["removals"][0]["what"] == "checkpoint step-00000001"
    )
