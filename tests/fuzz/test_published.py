"""Published files, damaged: read, or one sentence."""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from gmem.encoder import load_encoder
from gmem.metrics import read_adm, read_sums
from gmem.metrics.sums import FeatureSums, write_sums
from gmem.network import Network
from gmem.published import read_bank, read_latent_statistics, read_network, write_folder
from gmem.settings import NetworkConfig
from gmem.tokenizer import load_tokenizer
from gmem.weights import ASSETS
from tests.fuzz.mutation import given_many, is_one_sentence, mutated, rewritten, within_memory

CONFIG = NetworkConfig(1, 16, 2, latent_channels=2, latent_size=2, snippet_dim=4, projection_after=1)


def saved(content: Any, **choices: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **choices)
    return buffer.getvalue()


def archived(arrays: dict[str, np.ndarray], write: Callable[..., None] = np.savez) -> bytes:
    buffer = io.BytesIO()
    write(buffer, **arrays)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def sums() -> bytes:
    found = FeatureSums(("pool",), ("logits",))
    features = np.random.default_rng(0).normal(size=(5, 3))
    found.update({"pool": features, "logits": features}, np.arange(5))
    return write_sums({"inception": found})


torch.manual_seed(0)
WEIGHTS = dict(Network(CONFIG).state_dict())
PICTURES = np.zeros((3, 4, 4, 3), np.uint8)
WHOLE = {
    "network.pt": saved({"ema": WEIGHTS, "config": {"data": {"latent_norm": True}}, "args": argparse.Namespace(a=1)}),
    "network.pth": saved(WEIGHTS, _use_new_zipfile_serialization=False),
    "network.safetensors": save(WEIGHTS),
    "bank.pt": saved(torch.randn(7, 3)),
    "bank.safetensors": save({"bank": torch.randn(7, 3).half()}),
    "bank.npy": npy(np.ones((7, 3), np.float32)),
    "statistics.pt": saved({"mean": torch.zeros(1, 2, 1, 1), "std": torch.ones(1, 2, 1, 1)}),
    "reference.npz": archived({"mu": np.zeros(2), "sigma": np.eye(2), "arr_0": PICTURES}),
    "packed.npz": archived({"mu": np.zeros(2), "sigma": np.eye(2), "arr_0": PICTURES}, np.savez_compressed),
    "sums.npz": sums(),
}
SUFFIXES = {name.rpartition(".")[2] for name in WHOLE}


def read_everything_of(path: Path) -> Any:
    reference = read_adm(path)
    return list(reference.images(2)) if reference.images_shape else reference


def read_the_sums(path: Path) -> Any:
    return read_sums(path.read_bytes())


READERS: dict[str, Callable[[Path], Any]] = {
    "network": read_network,
    "bank": lambda path: list(read_bank(path).chunks(4)),
    "statistics": read_latent_statistics,
    "reference": read_everything_of,
    "sums": read_the_sums,
}


def read(data: bytes, suffix: str, reader: Callable[[Path], Any]) -> None:
    with tempfile.TemporaryDirectory() as folder, within_memory():
        path = Path(folder) / f"x.{suffix}"
        path.write_bytes(data)
        try:
            reader(path)
        except ValueError as error:
            assert is_one_sentence(error), str(error)


def test_the_whole_ones_are_read(tmp_path: Path) -> None:
    for name, data in WHOLE.items():
        (tmp_path / name).write_bytes(data)
        READERS.get(name.partition(".")[0], read_everything_of)(tmp_path / name)


@given_many(2.0)
@given(mutated(list(WHOLE.values())), st.sampled_from(sorted(SUFFIXES)), st.sampled_from(sorted(READERS)))
def test_damaged_files(data: bytes, suffix: str, reader: str) -> None:
    read(data, suffix, READERS[reader])


def pickles(data: bytes) -> tuple[dict[str, bytes], str]:
    """The parts of an archive of torch's, and which of them says what the others are."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    return parts, next(name for name in parts if name.endswith("data.pkl"))


ARCHIVES = {name: pickles(data) for name, data in WHOLE.items() if name.endswith(".pt")}


@given_many(2.0)
@given(st.data(), st.sampled_from(sorted(ARCHIVES)))
def test_damaged_pickles_in_sound_archives(data: st.DataObject, name: str) -> None:
    """With the right checksums, so that they are unpickled."""
    parts, main = ARCHIVES[name]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, data.draw(mutated([content])) if part == main else content)
    read(buffer.getvalue(), "pt", READERS[name.partition(".")[0]])


SETTINGS = ("prediction", "path_type", "latent_multiplier", "latent_norm", "projection_after", "snippet_scale")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(SETTINGS) | st.integers(), inner),
)


@given_many()
@given(st.dictionaries(st.sampled_from(("config", "args", "ema", "model", *SETTINGS)) | st.none(), VALUES))
def test_anything_beside_the_weights(content: dict[Any, Any]) -> None:
    read(saved({"ema": WEIGHTS} | content), "pt", read_network)


FOLDERS: dict[str, Callable[[str], Any]] = {
    "emoji-tokenizer": load_tokenizer,
    "emoji-encoder": load_encoder,
    "network": read_network,
}


def folder_of(name: str, root: Path) -> Path:
    """A folder that may be written into, its weights linked."""
    folder = root / name
    if name == "network":
        write_folder(folder, WEIGHTS, CONFIG)
        return folder
    folder.mkdir()
    for file in (ASSETS / name).iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file)
        else:
            shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_damaged_folders(name: str, tmp_path: Path) -> None:
    """Whatever their `config.json` says."""
    folder = folder_of(name, tmp_path)
    assert FOLDERS[name](str(folder))
    whole = (folder / "config.json").read_bytes()

    @given_many(0.3)
    @given(mutated([whole, b"[" * 5000, b"[]"]) | rewritten([whole]))
    def check(data: bytes) -> None:
        (folder / "config.json").write_bytes(data)
        with within_memory():
            try:
                FOLDERS[name](str(folder))
            except ValueError as error:
                assert is_one_sentence(error), str(error)

    check()
