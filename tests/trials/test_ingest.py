"""Pictures and tars that are not what they seem, through the stage ingest on Ray; and a shard damaged afterwards."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.cluster.connection import connected
from flows.engine.build import build
from flows.engine.progress import Terminal
from flows.engine.stage import Plan
from flows.recipe.cluster import Cluster
from flows.recipe.files import load
from flows.stages.ingest.stage import IMAGES, STAGE
from storage.images.index import index_shards, read_index
from storage.images.shards import read_shard
from storage.store import StoreError
from storage.tracking.tracking import Tracking

pytestmark = [pytest.mark.trials, pytest.mark.timeout(300)]

Trial = Callable[..., None]
SHARD = 8

FAULT = """
import os, signal
from PIL import Image

opened = Image.open

def fatal(file, *args, **kwargs):
    if hasattr(file, "getvalue") and b"POISON" in file.getvalue():
        os.kill(os.getpid(), signal.SIGSEGV)
    return opened(file, *args, **kwargs)

Image.open = fatal
"""


@pytest.fixture(scope="module", autouse=True)
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray whose workers have a decoder with a fault: some bytes kill whoever decodes them."""
    folder = tmp_path_factory.mktemp("fault")
    (folder / "sitecustomize.py").write_text(FAULT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(Cluster(cpus=2)):
            yield


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def plan_of(source: Path, tmp_path: Path) -> Plan:
    data = {"source": str(source), "shard_size": SHARD}
    return Plan(load("emoji", {"store": str(tmp_path / "runs"), "data": data}))


def ingest(plan: Plan) -> dict[str, str | None]:
    """Builds the stage; the reason of each input by its path, None for those kept."""
    with Terminal("ingest") as progress:
        build(STAGE, plan, Tracking.open(None, plan.store, plan.recipe.name), None, progress)
    index = read_index(plan.artifact(IMAGES).uri)
    return {row["path"]: row["reason"] for row in index.to_pylist()}


def lost_and_doubled(plan: Plan, expected: int) -> tuple[int, int]:
    """Compares what can be read back with the number of good pictures."""
    artifact = plan.artifact(IMAGES)
    assert artifact.complete
    shards = index_shards(read_index(artifact.uri))
    samples = [row.sample for shard in shards for row in read_shard(artifact.uri, shard)]
    return expected - len(set(samples)), len(samples) - len(set(samples))


def test_a_poison_picture(tmp_path: Path, trial: Trial) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    for number in range(24):
        (source / f"{number:02d}.png").write_bytes(picture(number) + (b"POISON" if number == 11 else b""))
    plan = plan_of(source, tmp_path)
    reasons = ingest(plan)
    assert reasons.pop("11.png") == "the decoder ended with SIGSEGV" and set(reasons.values()) == {None}
    trial("ingest: a picture that kills its decoder", "SIGSEGV of the worker, each time", SHARD,
          *lost_and_doubled(plan, 23), of=24, outcome="completed; listed: the decoder ended with SIGSEGV")  # fmt: skip


def test_a_truncated_tar(tmp_path: Path, trial: Trial) -> None:
    source = tmp_path / "pictures.tar"
    with tarfile.open(source, "w") as tar:
        for number in range(12):
            add(tar, f"{number:02d}.png", picture(number))
    source.write_bytes(source.read_bytes()[: 9 * 13_000])
    plan = plan_of(source, tmp_path)
    reasons = ingest(plan)
    cut = [reason for reason in reasons.values() if reason]
    assert cut == ["truncated tar: ends inside this member"]
    trial("ingest: a truncated tar", "the tar cut within a picture", 0, *lost_and_doubled(plan, len(reasons) - 1),
          of=12, outcome=f"completed with {len(reasons) - 1} whole ones; listed: {cut[0]}")  # fmt: skip
    assert len(reasons) >= 9


def test_a_tar_with_names_and_links_that_lead_outside(tmp_path: Path, trial: Trial) -> None:
    source, secret = tmp_path / "pictures.tar", tmp_path / "secret.png"
    secret.write_bytes(picture(99))
    with tarfile.open(source, "w") as tar:
        for number in range(9):
            add(tar, f"{number}.png", picture(number))
        add(tar, "../outside.png", picture(20))
        add(tar, f"{tmp_path}/absolute.png", picture(21))
        for name, kind in (("symbolic.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            tar.addfile(info)
    plan = plan_of(source, tmp_path)
    refused = {path: reason for path, reason in ingest(plan).items() if reason}
    assert sorted(refused.values()) == ["refused: a link"] * 2 + ["refused: its name leaves the folder"] * 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pictures.tar", "runs", "secret.png"]
    assert secret.read_bytes() == picture(99)
    trial("ingest: a tar with ../ names and links", "four hostile members", 0, *lost_and_doubled(plan, 9), of=9,
          outcome="completed; the four are listed as refused")  # fmt: skip


def test_a_shard_damaged_in_the_store(tmp_path: Path, trial: Trial) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    for number in range(24):
        (source / f"{number:02d}.png").write_bytes(picture(number))
    plan = plan_of(source, tmp_path)
    ingest(plan)
    images = Path(plan.artifact(IMAGES).uri)
    shard = images / "shard-000001.tar"
    before = {path.name: path.stat().st_mtime_ns for path in images.glob("*.tar")}
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(StoreError, match=r"damaged .*: remove .*shard-000001\.parquet and .*manifest\.json") as said:
        list(read_shard(str(images), "shard-000001"))
    (images / "parts" / "shard-000001.parquet").unlink()
    (images / "manifest.json").unlink()
    ingest(plan)
    anew = [name for name, time in before.items() if (images / name).stat().st_mtime_ns != time]
    assert anew == ["shard-000001.tar"]
    trial("images: a shard cut in half", "half of shard-000001.tar", SHARD, *lost_and_doubled(plan, 24), of=24,
          outcome="completed; before: " + str(said.value))  # fmt: skip


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
