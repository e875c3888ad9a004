from __future__ import annotations

import errno
import io
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from storage import checkpoints
from storage.checkpoints import Checkpoint, CheckpointManifest
from storage.retention.checkpoints import pin, prune
from storage.store import Input, LeaseLost, Store, StoreError

NETWORK = {"depth": 2, "width": 8}


def tensors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(4, 3, generator=generator)
    return {
        "network.blocks.0.weight": weight,
        "network.scale": torch.tensor(2.0),
        "ema.blocks.0.weight": weight * 0.5,
        "optimiser.blocks.0.weight.exp_avg": torch.randn(8, 3, generator=generator)[::2],
        "optimiser.blocks.0.weight.step": torch.tensor(step),
        "optimiser.half": torch.arange(10).to(torch.bfloat16)[3:5],
    }


def save(where: str, step: int, loss: float | None = None) -> Checkpoint:
    manifest = CheckpointManifest(step=step, network=NETWORK, held_out_loss=loss)
    return checkpoints.save(where, step, tensors(step), {"step": step, "rate": 0.1}, manifest)


def overwrite(path: str, data: bytes) -> None:
    Store(path.rsplit("/", 1)[0]).write_bytes(path, data)


def test_what_was_saved_comes_back_bit_by_bit(root: str) -> None:
    manifest = CheckpointManifest(
        step=2000,
        network=NETWORK,
        latents=Input(uri="latents/emoji-x", fingerprint="x", version=4),
        bank=Input(uri="bank/emoji-y", fingerprint="y", version=9),
        tokenizer={"name": "emoji-f8", "sha256": "ab"},
        encoder={"name": "vit", "sha256": "cd"},
        latent_mean=[0.1, 0.2],
        latent_std=[1.0, 2.0],
    )
    saved = checkpoints.save(f"{root}/training/x", 2000, tensors(1), {"step": 2000, "loss": [0.1]}, manifest)
    assert saved.uri == f"{root}/training/x/checkpoints/step-00002000"
    found = checkpoints.latest(f"{root}/training/x")
    assert found == saved and found is not None
    assert found.manifest.bank is not None and found.manifest.bank.version == 9
    assert found.manifest.latent_std == [1.0, 2.0] and found.manifest.network == NETWORK
    again, progress = checkpoints.load(found)
    assert progress == {"step": 2000, "loss": [0.1]}
    assert again.keys() == tensors(1).keys()
    for name, tensor in tensors(1).items():
        assert again[name].dtype == tensor.dtype and torch.equal(again[name], tensor), name
    only, _ = checkpoints.load(found, ["ema"])
    assert list(only) == ["ema.blocks.0.weight"]
    with pytest.raises(StoreError, match="has no teacher"):
        checkpoints.load(found, ["teacher"])


def test_nothing_there(root: str) -> None:
    assert checkpoints.latest(root) is None and checkpoints.best(root) is None and checkpoints.load_latest(root) is None
    with pytest.raises(StoreError, match="no finished checkpoint"):
        checkpoints.open_checkpoint(f"{root}/checkpoints/step-00000001")


def test_newest_and_best_are_kept(root: str) -> None:
    losses = {1: 0.9, 2: 0.3, 3: 0.5, 4: 0.4, 5: 0.6}
    for step, loss in losses.items():
        save(root, step, loss)
    assert [each.step for each in checkpoints.all_checkpoints(root)] == [1, 2, 3, 4, 5]
    newest, best = checkpoints.latest(root), checkpoints.best(root)
    assert newest is not None and newest.step == 5
    assert best is not None and best.step == 2
    assert prune(root, keep=7, pinned=[1]) == []
    assert prune(root, keep=2, pinned=[1]) == [3]
    assert [each.step for each in checkpoints.all_checkpoints(root)] == [1, 2, 4, 5]
    assert prune(root, keep=1) == [1, 4]


def test_without_losses_the_newest_is_the_best(tmp_path: Path) -> None:
    save(str(tmp_path), 1)
    save(str(tmp_path), 2)
    best = checkpoints.best(str(tmp_path))
    assert best is not None and best.step == 2


def test_saving_a_step_again_replaces_it(root: str) -> None:
    save(root, 1)
    manifest = CheckpointManifest(step=1, network=NETWORK)
    checkpoints.save(root, 1, {"network.a": torch.zeros(1)}, {}, manifest)
    found = checkpoints.load_latest(root)
    assert found is not None and list(found[1]) == ["network.a"]
    assert Store(root).files.names(found[0].uri) == ["manifest.json", "network.safetensors", "progress.json"]


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "missing", "half a manifest", "newer format"])
def test_a_damaged_one_is_passed_over(root: str, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    save(root, 1)
    broken = save(root, 2)
    store = Store(root)
    network, manifest = f"{broken.uri}/network.safetensors", f"{broken.uri}/manifest.json"
    data, text = store.read_bytes(network), store.read_bytes(manifest)
    if damage == "truncated":
        overwrite(network, data[:-5])
    elif damage == "flipped bit":
        overwrite(network, data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "missing":
        store.files.remove(network)
    elif damage == "half a manifest":
        overwrite(manifest, text[: len(text) // 2])
    else:
        overwrite(manifest, text.replace(b'"format_version": 1', b'"format_version": 99'))
    with caplog.at_level(logging.WARNING):
        found = checkpoints.load_latest(root)
    assert found is not None and found[0].step == 1
    assert torch.equal(found[1]["ema.blocks.0.weight"], tensors(1)["ema.blocks.0.weight"])
    assert "step-00000002" in caplog.text and (
        "remove this checkpoint's folder" in caplog.text or "update it" in caplog.text
    )
    if damage == "flipped bit":
        with pytest.raises(StoreError, match="hash differs"):
            checkpoints.load(broken)
    else:
        assert prune(root, keep=3) == []  # left for a person to look at


def flip_a_bit(checkpoint: Checkpoint) -> None:
    path = f"{checkpoint.uri}/network.safetensors"
    data = Store(checkpoint.uri).read_bytes(path)
    overwrite(path, data[:-1] + bytes([data[-1] ^ 1]))


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forgets what this process saved and compared, as one that starts again has."""
    return lambda: monkeypatch.setattr(checkpoints, "_sound", {})


@pytest.mark.parametrize("unreadable", ["manifest.json", "network.safetensors", "progress.json"])
def test_what_cannot_be_read_just_now_is_not_passed_over(
    tmp_path: Path, unreadable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that goes on from an older one, or from the start, since a store was away would undo work."""
    save(str(tmp_path), 1)
    save(str(tmp_path), 2)
    opened = io.open

    def away(path: Any, *args: Any, **options: Any) -> Any:
        if str(path).endswith(f"step-00000002/{unreadable}"):
            raise OSError(errno.ETIMEDOUT, "Connection timed out")
        return opened(path, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(io, "open", away)  # which pathlib uses
        patched.setattr("builtins.open", away)
        with pytest.raises(StoreError, match=r"cannot be read \(Connection timed out\)"):
            checkpoints.load_latest(str(tmp_path))
    found = checkpoints.load_latest(str(tmp_path))
    assert found is not None and found[0].step == 2


def test_a_damaged_one_does_not_count_among_those_kept(root: str, another_process: Callable[[], None]) -> None:
    for step in (1, 2, 3, 4):
        saved = save(root, step)
    flip_a_bit(saved)
    another_process()
    assert prune(root, keep=2) == [1]
    found = checkpoints.load_latest(root)
    assert found is not None and found[0].step == 3
    assert [each.step for each in checkpoints.all_checkpoints(root)] == [2, 3, 4], "for a person to look at"


def test_a_damaged_best_leaves_the_second_best(root: str, another_process: Callable[[], None]) -> None:
    flip_a_bit(save(root, 1, 0.1))
    for step, loss in {2: 0.2, 3: 0.5, 4: 0.4, 5: 0.9}.items():
        save(root, step, loss)
    another_process()
    assert prune(root, keep=1) == [3, 4]


def test_after_falling_back_new_ones_stay(root: str, another_process: Callable[[], None]) -> None:
    for step in (1, 2):
        save(root, step)
    for step in (6, 7):
        flip_a_bit(save(root, step))
    another_process()
    found = checkpoints.load_latest(root)
    assert found is not None and found[0].step == 2
    save(root, 3)
    assert prune(root, keep=1, pinned=[3]) == [1, 2]
    save(root, 6)
    assert prune(root, keep=1, pinned=[6]) == [3]
    found = checkpoints.load_latest(root)
    assert found is not None and found[0].step == 6, "the damaged one was replaced"


def test_what_something_refers_to_is_not_pruned(root: str) -> None:
    first, second, *_ = [save(root, step) for step in (1, 2, 3, 4)]
    pin(first, "registered")
    pin(second, "report/emoji-0123456789ab")
    assert prune(root, keep=1) == [3]
    assert checkpoints.load(first)[1]["step"] == 1


def test_what_cannot_be_removed_just_now_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was saved all the same, and must not be saved again on that account."""
    for step in (1, 2, 3):
        save(str(tmp_path), step)

    def away(path: str) -> None:
        raise OSError(errno.EIO, "Input/output error", path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", away)
        assert prune(str(tmp_path), keep=1) == []
    assert "stay until the next is saved" in caplog.text
    assert prune(str(tmp_path), keep=1) == [1, 2]


def test_the_same_saved_again_is_never_absent(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save(root, 1)
    monkeypatch.setattr(checkpoints, "remove", lambda uri: pytest.fail(f"{uri} was removed before it was replaced"))
    assert save(root, 1) == first


def test_a_damaged_one_saved_again_is_replaced(root: str, another_process: Callable[[], None]) -> None:
    flip_a_bit(save(root, 1))
    another_process()
    save(root, 1)
    assert checkpoints.load_latest(root) is not None


def test_files_have_the_rights_that_the_users_files_have(tmp_path: Path) -> None:
    """So that whoever shares the store can read the weights; the libraries' own are for nobody else."""
    before = os.umask(0o027)
    try:
        save(str(tmp_path), 1)
    finally:
        os.umask(before)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in written} == {".safetensors", ".json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o640}


def test_killed_before_the_manifest(tmp_path: Path) -> None:
    """A process that dies between the files and the manifest leaves the previous checkpoint in force."""
    save(str(tmp_path), 1)
    code = f"""
import os, signal, sys, torch
sys.path.insert(0, {os.path.dirname(__file__)!r})
from storage.files.local import LocalFiles
write = LocalFiles.write
def fatal(self, path, data, durable=True):
    if path.endswith("step-00000002/manifest.json"):
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, path, data, durable)
LocalFiles.write = fatal
from test_checkpoints import save
save({str(tmp_path)!r}, 2)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    leftover = tmp_path / "checkpoints" / "step-00000002"
    assert (leftover / "network.safetensors").exists()
    newest = checkpoints.latest(str(tmp_path))
    assert newest is not None and newest.step == 1
    assert prune(str(tmp_path), keep=3) == [2]
    assert not leftover.exists()
    save(str(tmp_path), 2)
    newest = checkpoints.latest(str(tmp_path))
    assert newest is not None and newest.step == 2


def test_a_training_that_was_taken_over_is_not_written_to(tmp_path: Path) -> None:
    artifact = Store(str(tmp_path)).artifact("training", "emoji", "0" * 12)
    with artifact.lease("first") as first:
        manifest = CheckpointManifest(step=1, network=NETWORK, lease=first.number)
        checkpoints.save(artifact, 1, tensors(1), {}, manifest)
    with artifact.lease("second"), pytest.raises(LeaseLost):
        checkpoints.save(artifact, 2, tensors(2), {}, manifest)
    assert [each.step for each in checkpoints.all_checkpoints(artifact)] == [1]


def test_exported_weights_can_be_sampled_from_by_themselves(root: str) -> None:
    saved = save(f"{root}/training", 7)
    exported = checkpoints.export(saved, f"{root}/weights")
    assert Store(root).files.names(f"{root}/weights") == ["ema.safetensors", "manifest.json"]
    again = checkpoints.open_checkpoint(f"{root}/weights/")
    assert again == exported and again.step == 7 and again.manifest.network == NETWORK
    loaded, progress = checkpoints.load(again)
    assert list(loaded) == ["ema.blocks.0.weight"] and progress == {}


def test_an_average_is_exported_as_the_only_one(root: str) -> None:
    weights = {"ema.weight": torch.zeros(2), "ema_9.weight": torch.ones(2), "network.weight": torch.zeros(2)}
    about = CheckpointManifest(step=3, network=NETWORK, details={"averages": {"ema": 0.5, "ema_9": 0.9}})
    saved = checkpoints.save(f"{root}/training", 3, weights, {}, about)
    exported = checkpoints.export(saved, f"{root}/weights", "ema_9")
    assert exported.averages == {"ema": 0.9} and saved.averages == {"ema": 0.5, "ema_9": 0.9}
    assert torch.equal(checkpoints.load(exported)[0]["ema.weight"], torch.ones(2))
    with pytest.raises(StoreError, match=r"has no averaged weights \(ema_8\.safetensors\)"):
        checkpoints.export(saved, f"{root}/none", "ema_8")


def test_a_tensor_without_a_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="belongs to no group"):
        checkpoints.save(str(tmp_path), 1, {"x": torch.zeros(1)}, {}, CheckpointManifest(step=1, network={}))
