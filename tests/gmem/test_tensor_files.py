"""Files of tensors, damaged or made to harm: each ends in one sentence."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gmem.published import read_bank, read_latent_statistics, read_network, read_tokenizer
from gmem.tensor_files import bare_names, read_file, write_tensors

READERS: list[Callable[[Path], Any]] = [read_network, read_bank, read_latent_statistics, read_tokenizer]


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + bytes(64)


DEEP = b"[" * 100_000
HOSTILE = {
    "deep.safetensors": struct.pack("<Q", len(DEEP)) + DEEP,
    "long.safetensors": struct.pack("<Q", 2**63) + b"{}",
    "cut.npy": npy(b"{'descr"),
    "open.npy": npy(b"(((("),
    "quoted.npy": npy(b"'''"),
    "deep.npy": npy(b"(" * 5000),
    "wide.npy": npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}"),
    "negative.npy": npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
    "objects.npy": npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"),
    "records.npy": npy(b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}"),
    "stub.pt": b"PK\x03\x04stub",
    "opcode.pt": b"\x81.",
    "memory.pt": b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R.",
}


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize("name", HOSTILE)
def test_damaged_headers(tmp_path: Path, name: str, read: Callable[[Path], Any]) -> None:
    (tmp_path / name).write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match=r"truncated or no file of tensors|more than tensors") as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_wrong_checksum_is_no_other_bank(tmp_path: Path) -> None:
    """Torch compares none: the bank would be read with other numbers."""
    path = saved(torch.ones(100, 4), tmp_path / "x.pth")
    data = bytearray(path.read_bytes())
    place = data.index(struct.pack("<f", 1.0) * 4)
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"is damaged: the checksum of its part 'x/data/0' does not fit"):
        read_bank(path)


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(50 << 20))
    with pytest.raises(ValueError, match="is a compressed archive"):
        read_file(tmp_path / "x.pth")


@pytest.mark.parametrize("name", [None, 3, ("a", "b")])
def test_names_are_text(tmp_path: Path, name: Any) -> None:
    path = saved({"ema": {name: torch.zeros(2)}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=f"a tensor under a {type(name).__name__} instead of a name"):
        read_network(path)


@pytest.mark.parametrize("wrapped", ["module._orig_mod.{}", "_orig_mod.module.{}", "ema.module.{}", "model.ema.{}"])
def test_wrappers_in_any_order(wrapped: str) -> None:
    names = ["blocks.0.attn.qkv.weight", "pos_embed"]
    tensors = {wrapped.format(name): torch.zeros(1) for name in names}
    assert list(bare_names("x.pt", tensors)) == names


def test_a_compiled_block_within() -> None:
    assert list(bare_names("x.pt", {"blocks.0._orig_mod.norm1.weight": torch.zeros(1)})) == ["blocks.0.norm1.weight"]


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two tensors 'a'"):
        bare_names("x.pt", {"a": torch.zeros(1), "module.a": torch.ones(1)})


def test_a_bank_that_repeats_one_number_is_refused(tmp_path: Path) -> None:
    path = saved(torch.zeros(1).expand(10**7, 10**5), tmp_path / "x.pth")
    with pytest.raises(ValueError, match="states more numbers than it holds"):
        read_bank(path)


def test_a_folder_with_json_nested_too_deep(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"no readable config\.json"):
        read_network(tmp_path)


def test_what_is_written_has_the_rights_that_the_users_files_have(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o640


def test_numbers_of_numpy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 2), np.float32))
    assert read_bank(tmp_path / "x.npy").rows == 3
