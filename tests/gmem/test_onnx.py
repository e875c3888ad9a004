"""Vectors of pictures by ONNX files whose answer is known, and one sentence for every file that has none."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gmem.encoder import load_encoder
from gmem.errors import InputError
from gmem.onnx import IMAGENET_MEAN, IMAGENET_STD, OnnxNetwork
from gmem.weights import WeightsRef
from tests.onnx_files import FLOAT, write_means

COLOUR = (10, 100, 250)


def plain(count: int = 2, side: int = 20) -> torch.Tensor:
    return torch.tensor(COLOUR, dtype=torch.uint8)[None, :, None, None].expand(count, 3, side, side).contiguous()


@pytest.mark.parametrize("shape", [("n", "h", "w", 3), ("n", 3, 32, 32), (1, 3, 32, 32), ("n", 3, "h", "w")])
def test_a_network_that_takes_bytes_is_given_them(tmp_path: Path, shape: tuple[int | str, ...]) -> None:
    network = OnnxNetwork(f"onnx:{write_means(tmp_path / 'means.onnx', shape)}")
    assert network.dim == 3 and network.preprocessing.endswith("px, bytes, output vector")
    assert network(plain()).tolist() == [pytest.approx(COLOUR, rel=1e-3)] * 2


def test_one_that_takes_floats_is_given_them_normalised(tmp_path: Path) -> None:
    source = f"onnx:{write_means(tmp_path / 'means.onnx', ('n', 3, 'h', 'w'), FLOAT)}"
    expected = (np.array(COLOUR) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    assert OnnxNetwork(source)(plain())[0].tolist() == pytest.approx(expected.tolist(), rel=1e-3)
    other = OnnxNetwork(f"{source}?mean=0.5,0.5,0.5&std=0.25,0.25,0.5")
    half = (np.array(COLOUR) / 255 - 0.5) / (0.25, 0.25, 0.5)
    assert other(plain())[0].tolist() == pytest.approx(half.tolist(), rel=1e-3)
    assert other.preprocessing == "bilinear to 288 px, mean 0.5,0.5,0.5, std 0.25,0.25,0.5, output vector"


def test_pictures_reach_its_size_as_pillow_resizes_them(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    small = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BILINEAR)).astype(float)
    network = OnnxNetwork(f"onnx:{write_means(tmp_path / 'means.onnx')}?size=16")
    found = network(torch.from_numpy(picture).movedim(-1, 0)[None])
    assert found[0].tolist() == pytest.approx(small.mean(axis=(0, 1)).tolist(), abs=0.1)


def test_the_same_vectors_in_any_batches(tmp_path: Path) -> None:
    network = OnnxNetwork(f"onnx:{write_means(tmp_path / 'means.onnx')}")
    images = torch.randint(0, 256, (5, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    single = torch.cat([network(image[None]) for image in images])
    assert torch.allclose(network(images), single, rtol=1e-6)


@pytest.mark.parametrize(
    ("written", "settings", "said"),
    [
        ({"outputs": ("a", "b")}, "", "has several outputs; name one by output=NAME: there are a, b"),
        ({"outputs": ("a", "b")}, "?output=c", "has no output 'c'; name one by output=NAME: there are a, b"),
        ({"kept": True}, "", r"'vector' of .* has shape \(2, 1, 1, 3\) for two pictures, not a vector for each"),
        ({"shape": ("n", 4, 32, 32)}, "", r"takes picture tensor\(uint8\) \['n', 4, 32, 32\], and no pictures as"),
        ({"shape": ("n", 3, "h", "w", 1)}, "", "and no pictures as floats or bytes"),
        ({"shape": (8, 3, 32, 32)}, "", "and no pictures as floats or bytes"),
        ({"shape": ("n", 3, 32, 48)}, "", "and no pictures as floats or bytes"),
        ({"taken": 7}, "", r"takes picture tensor\(int64\)"),
        ({"shape": ("n", 3, 32, 32)}, "?size=64", "takes pictures of 32 px alone; leave size=64 away"),
        ({}, "?mean=0.5,0.5,0.5", "normalises them itself; leave mean and std away"),
        ({}, "?size=many", "size=many is not possible; give a value such as size=288"),
        ({}, "?std=0,1,2", "std=0,1,2 is not possible; give a value such as std=0.5,0.5,0.5"),
        ({}, "?width=3", "has no setting 'width'; there are size, mean, std, output"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, written: dict[str, object], settings: str, said: str) -> None:
    file = write_means(tmp_path / "means.onnx", **written)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=said) as error:
        OnnxNetwork(f"onnx:{file}{settings}")
    assert "\n" not in str(error.value)


def test_a_named_output_is_taken(tmp_path: Path) -> None:
    network = OnnxNetwork(f"onnx:{write_means(tmp_path / 'means.onnx', outputs=('a', 'b'))}?output=b")
    assert network.preprocessing.endswith("output b") and network(plain(1)).shape == (1, 3)


def test_no_file_no_network_and_no_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"absent\.onnx' are not there"):
        OnnxNetwork(f"onnx:{tmp_path}/absent.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(InputError, match=r"text\.onnx is no ONNX network that can be run: ") as error:
        OnnxNetwork(f"onnx:{tmp_path}/text.onnx")
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=re.escape("by pip install 'gmem-pipeline[onnx]'")):
        OnnxNetwork(f"onnx:{write_means(tmp_path / 'means.onnx')}")


def test_its_name_its_settings_and_its_content_tell_networks_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_means(tmp_path / "sscd.onnx")
    monkeypatch.chdir(tmp_path)
    ref = WeightsRef.parse("onnx:sscd.onnx?size=320")
    assert (ref.kind, ref.name, ref.settings, ref.label) == ("onnx", "sscd.onnx", "size=320", "sscd")
    assert str(ref) == "onnx:sscd.onnx?size=320" and str(ref.absolute()) == f"onnx:{tmp_path}/sscd.onnx?size=320"
    other = WeightsRef.parse("onnx:sscd.onnx").identity()
    assert ref.identity() == f"{other}?size=320"
    (tmp_path / "odd?b%20c").mkdir()
    write_means(tmp_path / "odd?b%20c" / "sscd.onnx")
    assert WeightsRef.parse("onnx:odd?b%20c/sscd.onnx").identity() == other
    write_means(tmp_path / "sscd.onnx", outputs=("b",))
    assert WeightsRef.parse("onnx:sscd.onnx").identity() != other


def test_it_measures_and_makes_no_snippets() -> None:
    with pytest.raises(InputError, match=r"makes no snippets and patch tokens; name it in evaluate\.copy_detector"):
        load_encoder("onnx:sscd.onnx")
