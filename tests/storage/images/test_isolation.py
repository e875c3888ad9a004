"""Pictures that kill whoever decodes them: a decoder with such a fault is put into every process started meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage.images.index import read_index
from storage.images.isolation import Crashed, Isolated
from storage.images.shards import ShardPlan, read_shard, write_index, write_shard
from storage.images.sources import list_source

FAULT = """
import os, signal
from PIL import Image

opened = Image.open

def fatal(file, *args, **kwargs):
    if b"POISON" in file.getvalue():
        os.kill(os.getpid(), signal.SIGSEGV)
    return opened(file, *args, **kwargs)

Image.open = fatal
"""


def test_a_death_is_told_and_the_next_call_works() -> None:
    with Isolated(eval, seconds=3) as isolated:
        assert isolated("1 + 1") == 2
        with pytest.raises(Crashed, match="SIGSEGV"):
            isolated("__import__('os').kill(__import__('os').getpid(), 11)")
        with pytest.raises(Crashed, match="took longer than 3 s"):
            isolated("__import__('signal').pause()")
        assert isolated("3 + 1") == 4


@pytest.fixture
def faulty_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fault").mkdir()
    (tmp_path / "fault" / "sitecustomize.py").write_text(FAULT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fault"))


def test_a_picture_that_kills_the_decoder_is_listed_and_the_others_are_kept(
    tmp_path: Path, faulty_decoder: None
) -> None:
    source, images = tmp_path / "pictures", str(tmp_path / "images")
    source.mkdir()
    for number in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(source / f"{number}.png")
    (source / "3.png").write_bytes((source / "3.png").read_bytes() + b"POISON")
    listing = list_source(str(source))
    plan = ShardPlan(str(source), 8, 0.0)
    assert write_shard(images, 0, listing.slice(0, 6), plan, care="isolated") == (5, 1)
    write_index(images, 1, plan)
    rows = {row["path"]: row["reason"] for row in read_index(images).to_pylist()}
    assert rows.pop("3.png") == "the decoder ended with SIGSEGV" and set(rows.values()) == {None}
    assert [p.image[0, 0, 0] for p in read_shard(images, "shard-000000")] == [0, 40, 80, 160, 200]


def test_a_process_that_is_held_up_ends() -> None:
    """In a process of its own, since it ends; that of a picture in time goes on."""
    program = (
        "import time\n"
        "from storage.images.isolation import Watched\n"
        "with Watched(time.sleep, seconds=1) as watched:\n"
        "    watched(0)\n"
        "    time.sleep(1.5)\n"
        "    print('in time', flush=True)\n"
        "    watched(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (1, "in time\n")
    assert "Timeout" in ended.stderr
