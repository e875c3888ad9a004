"""Manifests and leases that are damaged, or made to harm: a store that holds one can still be looked at and cleaned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from storage import lease as leases
from storage.checkpoints import CheckpointManifest
from storage.errors import Damaged
from storage.lease import LeaseState
from storage.manifest import Manifest, parse
from storage.retention.clean import clean
from storage.retention.inventory import usage
from storage.store import Store

FOLDER = f"x-{'0' * 12}"
GOOD: dict[str, Any] = {
    "format_version": 1, "kind": "training", "name": "x", "fingerprint": "0" * 12, "created": "2024-01-01T00:00:00Z",
}  # fmt: skip
STEP: dict[str, Any] = {"format_version": 1, "step": 1, "network": {}, "created": "2024-01-01T00:00:00Z"}


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


DAMAGED = {
    "empty": "",
    "deep list": "[" * 100_000,
    "deep object": '{"a":' * 100_000,
    "digits": '{"format_version": ' + "9" * 5000 + "}",
    "version": '{"format_version": ' + "9" * 4000 + "}",
    "text as version": json.dumps(GOOD | {"format_version": "y" * 10_000}),
    "long key": json.dumps(GOOD | {"x" * 10_000: 1}),
    "no zone": json.dumps(GOOD | {"created": "2024-01-01T00:00:00"}),
    "no date": json.dumps(GOOD | {"created": 1e300}),
    "half a character": json.dumps(GOOD | {"details": {"a": "\ud800"}}),
    "deep details": json.dumps(GOOD)[:-1] + f', "details": {{"a": {nested(3000)}}}}}',
    "deep to write": json.dumps(GOOD)[:-1] + f', "details": {{"a": {nested(300)}}}}}',
    "wrong type": json.dumps(GOOD | {"counts": "many"}),
    "list": "[]",
    "no number": '{"format_version": NaN}',
}
ODD = {
    "beyond 64 bits": json.dumps(GOOD | {"lease": 10**30, "counts": {"rows": 10**30}, "parameters": {"step": 10**400}}),
    "first year": json.dumps(GOOD | {"created": "0001-01-01T00:00:00+23:59"}),
    "last year": json.dumps(GOOD | {"created": "9999-12-31T23:59:59-23:59"}),
    "infinite": json.dumps(GOOD | {"times": {"a": float("inf")}}),
    "a step": json.dumps(GOOD | {"details": {"a": f"training/{FOLDER}/checkpoints/step-{'9' * 5000}"}}),
}


def store_with(root: Path, path: str, text: str) -> Store:
    file = root / "training" / FOLDER / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return Store(str(root))


def looked_at(store: Store) -> list[str]:
    """States, after all that `gmem store` and `gmem status` do."""
    rows = usage(store)
    json.dumps(rows)
    clean(store)
    clean(store, keep=1, days=1.0)
    assert [artifact.summary()["state"] for artifact in store.artifacts()] == [row["state"] for row in rows]
    return [row["state"] for row in rows]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_manifest_is_told_in_a_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(Damaged) as error:
        parse(Manifest, DAMAGED[name].encode(), "manifest.json", "remove it.")
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)
    assert looked_at(store_with(tmp_path, "manifest.json", DAMAGED[name])) == ["damaged"]


@pytest.mark.parametrize("name", ODD)
def test_odd_values_disturb_nobody(tmp_path: Path, name: str) -> None:
    assert looked_at(store_with(tmp_path, "manifest.json", ODD[name])) == ["complete"]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint(tmp_path: Path, name: str) -> None:
    text = DAMAGED[name].replace(json.dumps(GOOD)[1:-1], json.dumps(STEP)[1:-1])
    with pytest.raises(Damaged):
        parse(CheckpointManifest, text.encode(), "manifest.json", "remove it.")
    store = store_with(tmp_path, "checkpoints/step-00000001/manifest.json", text or " ")
    assert looked_at(store) == ["unfinished"]


@pytest.mark.parametrize(
    "change",
    [
        {"ttl": float("inf")},
        {"ttl": float("nan")},
        {"ttl": -5},
        {"ttl": 1e18},
        {"number": 10**30},
        {"number": "a"},
        {"holder": "h" * 100_000},
        {"process": "SPACE/" + "9" * 30},
        {"process": "SPACE/-1"},
        {"process": "SPACE/abc"},
        {"counter": 10**30},
        None,
    ],
    ids=str,
)
def test_an_odd_lease_lets_others_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict | None) -> None:
    monkeypatch.setattr(leases, "TTL", 0.2)
    state = LeaseState(number=1, ttl=0.2).model_dump()
    text = "[" * 100_000 if change is None else json.dumps(state | change)
    store = store_with(tmp_path, "lease/00000001.json", text.replace("SPACE", leases._process_space()))
    looked_at(store)
    with store.artifacts()[0].lease("test", ttl=0.2) as held:
        assert held.number == 2
