"""JSON of a store and of reports, damaged: read, or one sentence; a store that holds it can be looked at."""

from __future__ import annotations

import json
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from gmem.metrics import Protocol, Result
from storage import lease as leases
from storage.checkpoints import CheckpointManifest
from storage.errors import Damaged
from storage.files import open_files
from storage.lease import LeaseState
from storage.manifest import Input, Manifest, parse
from storage.retention.clean import clean
from storage.retention.inventory import usage
from storage.store import Store
from tests.fuzz.mutation import given_many, is_one_sentence, mutated, rewritten, within_memory

ZEROS = "0" * 12
MANIFEST = Manifest(
    kind="training",
    name="x",
    fingerprint=ZEROS,
    parameters={"step": 5, "text": "\u00e4", "list": [1, 2.5, None, True]},
    inputs={"bank": Input(uri=f"bank/x-{ZEROS}", fingerprint=ZEROS, version=3)},
    counts={"rows": 3},
    times={"seconds": 1.5},
    details={"note": f"training/x-{ZEROS}/checkpoints/step-00000001"},
).model_dump_json().encode()  # fmt: skip
CHECKPOINT = CheckpointManifest(step=1, network={"depth": 1}, latent_mean=[0.5]).model_dump_json().encode()
LEASE = LeaseState(number=1, ttl=0.05, holder="me", process="a/b/1").model_dump_json().encode()
HERE = LEASE.replace(b"a/b/1", f"{leases._process_space()}/1".encode()).replace(b"0.05", b"0.02")
ODD = [b'{"a": ' * 2000, b"[" * 2000, b"9" * 5000, b'{"format_version": 1, "x": "\\ud800"}', b"-1e999", b"NaN"]
WORDS = {field.name: "x" if "str" in str(field.type) else 3 for field in fields(Protocol)}


def report() -> bytes:
    return Result("fid", 1.5, Protocol(**WORDS)).to_json().encode()  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [Manifest, CheckpointManifest])
def test_damaged_documents(model: type[Any]) -> None:
    @given_many()
    @given(mutated([MANIFEST, CHECKPOINT, *ODD]) | rewritten([MANIFEST, CHECKPOINT]))
    def check(data: bytes) -> None:
        try:
            parse(model, data, "manifest.json", "remove it.").model_dump_json()
        except Damaged as error:
            assert is_one_sentence(error), str(error)

    check()


@given_many(0.5)
@given(
    mutated([MANIFEST, *ODD]) | rewritten([MANIFEST]),
    mutated([CHECKPOINT, *ODD]) | rewritten([CHECKPOINT]),
    mutated([LEASE, *ODD]) | rewritten([LEASE]),
)
def test_a_store_with_damaged_documents(manifest: bytes, checkpoint: bytes, lease: bytes) -> None:
    with tempfile.TemporaryDirectory() as root, within_memory(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "TTL", 0.05)
        folder = Path(root) / "training" / f"x-{ZEROS}"
        for name, data in (
            ("manifest.json", manifest),
            ("checkpoints/step-00000001/manifest.json", checkpoint),
            ("lease/00000001.json", lease),
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        store = Store(root)
        json.dumps(usage(store))
        state = leases.current(open_files(root), str(folder))
        if state is None or state.ttl < 0.1:  # else it would be watched for so long
            clean(store)
            clean(store, keep=1)


@given_many()
@given(mutated([HERE, *ODD], most=2) | rewritten([HERE]))
def test_damaged_leases(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as artifact, pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "TTL", 0.02)
        (Path(artifact) / "lease").mkdir()
        (Path(artifact) / "lease" / "00000001.json").write_bytes(data)
        files = open_files(artifact)
        state = leases.current(files, artifact)
        assert state is not None and state.number == 1
        if state.ttl < 0.1:  # else it would be watched for so long
            assert not leases.alive(files, artifact)


@given_many()
@given(mutated([report(), *ODD]) | rewritten([report()]))
def test_damaged_results(data: bytes) -> None:
    try:
        Result.from_json(data.decode(errors="replace"))
    except ValueError as error:
        assert is_one_sentence(error), str(error)
