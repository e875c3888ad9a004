"""What lasts, when the process that writes it dies or its disk, its network, its files or its clock fail."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from storage import checkpoints
from storage.retention.clean import clean
from storage.store import Artifact, Store, StoreError
from storage.tables.bank import Bank
from storage.tables.bank_rows import make_rows, write_fragments
from storage.tables.bank_writer import BankWriter
from storage.tables.latents import Latents, table_uri

pytestmark = pytest.mark.trials

Trial = Callable[..., None]
PROGRAMS = Path(__file__).parent / "programs"
SHARDS, ROWS = 10, 20


class Program:
    """One of programs/ in a process of its own."""

    def __init__(self, name: str, *arguments: object) -> None:
        command = [sys.executable, "-u", str(PROGRAMS / f"{name}.py"), *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []

    def until(self, line: str) -> Program:
        """Waits until it prints this line."""
        assert self.process.stdout is not None
        for said in self.process.stdout:
            self.lines.append(said.strip())
            if said.strip() == line:
                return self
        raise AssertionError(f"it ended without saying {line!r}: {self.lines} {self.process.communicate()[1]}")

    def go_on(self) -> Program:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self

    def killed(self) -> Program:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
        return self

    def ended(self, code: int = 0) -> Program:
        out, err = self.process.communicate(timeout=200)
        self.lines += out.splitlines()
        assert self.process.returncode == code, self.lines + err.splitlines()[-5:]
        return self

    @property
    def written(self) -> int:
        return ROWS * sum(line.startswith("written") for line in self.lines)

    @property
    def sentence(self) -> str:
        (line,) = [line for line in self.lines if line.startswith("refused: ")]
        return line.removeprefix("refused: ")


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Store(str(tmp_path / "runs")).artifact("latents", "trial", "0" * 12)


def lost_and_doubled(artifact: Artifact) -> tuple[int, int]:
    assert artifact.complete
    ids = Latents.open(artifact.uri).dataset.to_table(columns=["id"])["id"].to_pylist()
    return len(set(range(SHARDS * ROWS)) - set(ids)), len(ids) - len(set(ids))


def committed_before(artifact: Artifact, shard: int) -> Program:
    """An extraction that was killed when the fragments of this shard lay there, uncommitted."""
    program = Program("extraction", artifact.store.root, shard).until(f"written {shard}").killed()
    assert not artifact.complete
    return program


def redone(*programs: Program) -> int:
    """Rows that were written more than once, by whomever."""
    return sum(program.written for program in programs) - SHARDS * ROWS


# --- kills -----------------------------------------------------------------------------------------------------------


def test_killed_between_fragments_and_commit(artifact: Artifact, trial: Trial) -> None:
    first = committed_before(artifact, 8)
    again = Program("extraction", artifact.store.root).ended()
    left = clean(artifact.store, remove=True)
    assert [r.what for r in left.removals] == ["1 files of latents.lance"], "the dead process's fragment"
    trial("latents: between fragments and commit", "SIGKILL at 90 %", redone(first, again), *lost_and_doubled(artifact),
          of=SHARDS * ROWS)  # fmt: skip
    assert again.written == 2 * ROWS


def test_killed_between_checkpoint_files_and_manifest(tmp_path: Path, trial: Trial) -> None:
    Program("checkpoint", tmp_path).until("files written").killed()
    training = Store(str(tmp_path)).artifact("training", "trial", "0" * 12)
    assert Path(training.path("checkpoints", "step-00000002", "network.safetensors")).exists()
    newest = checkpoints.load_latest(training)
    assert newest is not None and newest[0].step == 1 and torch.equal(newest[1]["network.w"], torch.ones(1000))
    assert [r.what for r in clean(training.store).removals] == ["checkpoint step-00000002"]
    Program("checkpoint", tmp_path).go_on().ended()
    newest = checkpoints.load_latest(training)
    trial("checkpoint: between files and manifest", "SIGKILL", 1, int(newest is None), 0, of=2)
    assert newest is not None and newest[0].step == 2 and newest[1]["network.w"].eq(2).all()


def test_a_holder_thought_dead_cannot_commit(artifact: Artifact, trial: Trial) -> None:
    still = Program("extraction", artifact.store.root, 5).until("written 5")
    still.process.send_signal(signal.SIGSTOP)
    other = Program("extraction", artifact.store.root).ended()
    still.process.send_signal(signal.SIGCONT)
    still.go_on().ended(2)
    assert re.search("taken over by another run", still.sentence)
    trial("latents: a holder that stood still for longer than its lease", "SIGSTOP, SIGCONT", redone(still, other),
          *lost_and_doubled(artifact), of=SHARDS * ROWS, outcome="the other completed; it: " + still.sentence)  # fmt: skip
    assert other.written == 5 * ROWS


@pytest.mark.parametrize("skew", [-86_400, 86_400], ids=["a day behind", "a day ahead"])
def test_clock_skew(artifact: Artifact, trial: Trial, skew: int, request: pytest.FixtureRequest) -> None:
    living = Program("extraction", artifact.store.root, 3, skew).until("written 3")
    past = time.time() + skew
    for file in Path(artifact.path("lease")).iterdir():
        os.utime(file, (past, past))
    waiting = Program("extraction", artifact.store.root)
    time.sleep(5)  # more than twice the lease's time to live
    assert waiting.process.poll() is None and artifact.holder().number == 1, "a living holder keeps its lease"
    living.killed()
    waiting.ended()
    trial(f"latents: clocks apart, the first's {request.node.callspec.id}", "SIGKILL of the first", redone(living, waiting),
          *lost_and_doubled(artifact), of=SHARDS * ROWS)  # fmt: skip
    assert waiting.written == 7 * ROWS


def test_two_started_together(artifact: Artifact, trial: Trial) -> None:
    both = [Program("extraction", artifact.store.root) for _ in range(2)]
    for program in both:
        program.ended()
    trial("latents: two started together", "nothing", redone(*both), *lost_and_doubled(artifact),
          of=SHARDS * ROWS)  # fmt: skip
    assert redone(*both) == 0


def bank_at(uri: str) -> Bank:
    rows = make_rows(np.arange(ROWS), np.ones((ROWS, 8)), "dataset", shard="shard-0")
    writer = BankWriter(uri, 8, {"name": "none"}, 1)
    writer.commit([write_fragments(uri, "shard-0", rows)])
    writer.finish_bank(np.arange(ROWS))
    return Bank(uri)


def test_parallel_appends_while_the_store_is_cleaned(tmp_path: Path, trial: Trial) -> None:
    store = Store(str(tmp_path))
    with (made := store.artifact("bank", "trial", "0" * 12)).lease("t") as lease:
        bank = bank_at(made.uri)
        made.commit(made.describe(lease, details={"version": bank.version}))
    both = [Program("appends", made.uri, 8).until("ready") for _ in range(2)]
    for program in both:
        program.go_on()
    cleaned = 0
    while any(program.process.poll() is None for program in both):
        dead = write_fragments(made.uri, "none", make_rows(np.arange(1), np.ones((1, 8)), "dataset"))["fragments"][0]
        os.utime(Path(made.path("bank.lance", "data", dead["files"][0]["path"])), (0, 0))  # by one that died long ago
        cleaned += len(clean(store, remove=True).removals)
    given = [int(i) for program in both for line in program.ended().lines[1:] for i in line.split()]
    found = Bank(made.uri).dataset.to_table(columns=["id"])["id"].to_pylist()
    lost = len(set(given) - set(found)) + (2 * 8 * 20 - len(given))
    trial("bank: two append, a third cleans", f"{cleaned} times files cleared away", 0, lost, len(found) - len(set(found)),
          of=2 * 8 * 20)  # fmt: skip
    assert len(found) == ROWS + 2 * 8 * 20 and Bank(made.uri).content_revision >= 3


# --- disks -----------------------------------------------------------------------------------------------------------


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Callable[[str], object]]:
    """A small file system of its own at this folder; gives what mounts it anew with other options."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        yield lambda options: subprocess.run(
            ["mount", "-o", f"remount,{options}", folder], check=True
        ).check_returncode()
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_disk_full(tmp_path: Path, trial: Trial) -> None:
    with disk(tmp_path / "small", "100k") as remount:
        artifact = Store(str(tmp_path / "small")).artifact("latents", "trial", "0" * 12)
        first = Program("extraction", artifact.store.root).ended(2)
        assert re.search("No space left.*free space", first.sentence) and not artifact.complete
        remount("size=10m")
        again = Program("extraction", artifact.store.root).ended()
        trial("latents: disk full", "tmpfs of 100 KB", max(0, redone(first, again)),
              *lost_and_doubled(artifact), of=SHARDS * ROWS, outcome="completed with more space; before: " + first.sentence)  # fmt: skip
        assert 0 < again.written < SHARDS * ROWS


def test_disk_full_for_a_checkpoint(tmp_path: Path, trial: Trial) -> None:
    with disk(tmp_path / "small", "200k") as remount:
        training = Store(str(tmp_path / "small")).artifact("training", "trial", "0" * 12)
        about = checkpoints.CheckpointManifest(step=1, network={})
        checkpoints.save(training, 1, {"network.w": torch.ones(10_000)}, {}, about)
        with pytest.raises(StoreError, match="free space") as refused:
            checkpoints.save(training, 2, {"network.w": torch.ones(100_000)}, {}, about)
        newest = checkpoints.load_latest(training)
        assert newest is not None and newest[0].step == 1
        remount("size=2m")
        checkpoints.save(training, 2, {"network.w": torch.ones(100_000)}, {}, about)
        newest = checkpoints.load_latest(training)
        trial("checkpoint: disk full", "tmpfs of 200 KB", 1, int(newest is None or newest[0].step != 2), 0, of=2,
              outcome="completed with more space; before: " + str(refused.value))  # fmt: skip


def test_read_only_store(tmp_path: Path, trial: Trial) -> None:
    with disk(tmp_path / "disk", "10m") as remount:
        artifact = Store(str(tmp_path / "disk")).artifact("latents", "trial", "0" * 12)
        begun = committed_before(artifact, 4)
        remount("ro")
        first = Program("extraction", artifact.store.root).ended(2)
        assert re.search("Read-only.*permissions", first.sentence)
        with pytest.raises(StoreError, match="Read-only"):
            artifact.store.require_writable()
        assert len(clean(artifact.store).removals) == 1, "a dry run needs no right to write"
        remount("rw")
        again = Program("extraction", artifact.store.root).ended()
        trial("latents: read-only store", "tmpfs mounted read-only", redone(begun, first, again), *lost_and_doubled(artifact),
              of=SHARDS * ROWS, outcome="completed when writable; before: " + first.sentence)  # fmt: skip


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_manifest_cut_in_half(artifact: Artifact, trial: Trial) -> None:
    Program("extraction", artifact.store.root).ended()
    path = Path(artifact.path("manifest.json"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    first = Program("extraction", artifact.store.root).ended(2)
    assert "remove this file and run again" in first.sentence
    path.unlink()
    again = Program("extraction", artifact.store.root).ended()
    trial("latents: manifest cut in half", "half of manifest.json", again.written, *lost_and_doubled(artifact),
          of=SHARDS * ROWS, outcome="completed; before: " + first.sentence)  # fmt: skip
    assert again.written == 0


def test_a_table_whose_newest_version_is_damaged(artifact: Artifact, trial: Trial) -> None:
    begun = committed_before(artifact, 7)
    newest = min(Path(table_uri(artifact.uri), "_versions").glob("*.manifest"))  # Lance numbers them downwards
    newest.write_bytes(newest.read_bytes()[:50])
    first = Program("extraction", artifact.store.root).ended(2)
    assert re.search(r"newest version is damaged; remove the newest \.manifest", first.sentence)
    newest.unlink()
    again = Program("extraction", artifact.store.root).ended()
    trial("latents: newest version of the table damaged", "its manifest cut", redone(begun, first, again),
          *lost_and_doubled(artifact), of=SHARDS * ROWS, outcome="completed one version back; before: " + first.sentence)  # fmt: skip
    assert again.written == 4 * ROWS


# --- the network -----------------------------------------------------------------------------------------------------


def test_a_store_that_is_away_for_a_while(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    settings = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem(endpoint_url=settings["AWS_ENDPOINT_URL"], use_listings_cache=False).mkdir("away")
    artifact = Store("s3://away/runs").artifact("latents", "trial", "0" * 12)
    program = Program("extraction", artifact.store.root, 4).until("written 4")
    server.stop()  # what it holds stays in this process
    program.go_on()
    time.sleep(8)  # four times the lease's time to live
    assert program.process.poll() is None, "it waits and tries again"
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        program.ended()
        trial("latents: s3:// store away for 8 s", "the server stopped", redone(program),
              *lost_and_doubled(artifact), of=SHARDS * ROWS)  # fmt: skip
    finally:
        server.stop()
