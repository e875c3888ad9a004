"""HEIC and JPEG XL: read where their plug-ins are installed, named where they are not."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from storage.images import formats
from storage.images.decoding import Decoded, Rejected, decode
from storage.images.formats import HEIF, JXL, Plugin, enable, jxl_size
from storage.images.sources import entries
from storage.images.sources.files import fingerprint

STREAMS = {
    (300, 200): "ff0a31412408040100c0004b",
    (16, 16): "ff0a4340240800010060004b",
    (1, 1): "ff0a00101009080001003400",
    (1000, 3): "ff0a1080ce07880408020100",
    (4000, 3000): "ff0aba5d0391080201001c00",
    (512, 513): "ff0a0210e03f880408020100",
}
"""Beginnings of pictures of these sizes as libjxl wrote them."""
BOXES = "0000000c4a584c200d0a870a00000014667479706a786c20000000006a786c20"


@pytest.mark.parametrize("size", STREAMS)
def test_the_size_is_known_before_a_pixel_is_decoded(size: tuple[int, int]) -> None:
    stream = bytes.fromhex(STREAMS[size])
    assert jxl_size(stream) == size
    boxed = bytes.fromhex(BOXES)
    assert jxl_size(boxed + (8 + len(stream)).to_bytes(4, "big") + b"jxlc" + stream) == size
    assert jxl_size(boxed + (12 + len(stream)).to_bytes(4, "big") + b"jxlp" + bytes(4) + stream) == size
    for length in range(2, 5):
        with pytest.raises(ValueError, match="ends before its size"):
            jxl_size(bytes.fromhex(STREAMS[1000, 3])[:length])


@pytest.mark.parametrize("boxes", [BOXES, BOXES + "00000000" * 3, BOXES[:30], "0000000c4a584c200d0a870a00000001ffff"])
def test_containers_without_a_picture_are_told(boxes: str) -> None:
    with pytest.raises(ValueError, match="a JPEG XL container without a picture"):
        jxl_size(bytes.fromhex(boxes))


@pytest.mark.parametrize(
    ("data", "plugin"),
    [
        (bytes.fromhex(STREAMS[16, 16]), JXL),
        (bytes.fromhex(BOXES), JXL),
        (b"\0\0\0\x18ftypheic" + bytes(20), HEIF),
        (b"\0\0\0\x18ftypmif1" + bytes(20), HEIF),
    ],
)
def test_without_its_plug_in_the_reason_names_the_format_and_the_package(
    data: bytes, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda module: None)
    assert decode(data) == Rejected(f"{plugin.title}, which is read where the package {plugin.package} is installed")
    monkeypatch.setattr(entries, "PICTURES", ("jpg",))
    reason = entries.unread(plugin.suffixes[0])
    assert reason is not None and plugin.package in reason
    assert entries.unread("psd") == "a picture in a format that is not read: .psd" and entries.unread("txt") is None


def test_a_source_is_another_one_where_more_of_it_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [entries.File("a.heic", "/a.heic", 3, "1"), entries.File("b.jpg", "/b.jpg", 3, "1")]
    there: dict[bool, list[str]] = {}
    for read in (False, True):
        monkeypatch.setattr("storage.images.sources.files.READ", ("heic",) if read else ())
        there[read] = [fingerprint(files), fingerprint(files[1:])]
    assert there[False][0] != there[True][0] and there[False][1] == there[True][1]


def encoded(image: Image.Image, plugin: Plugin, **options: Any) -> bytes:
    """By the plug-in itself; the test is skipped where it is not installed."""
    pytest.importorskip(plugin.module, reason=f"{plugin.package} is not installed: it comes with the dev extra")
    buffer = io.BytesIO()
    image.save(buffer, enable(plugin), **options)
    return buffer.getvalue()


@pytest.fixture
def gradient() -> Image.Image:
    ramp = np.linspace(0, 255, 30).astype(np.uint8)
    return Image.fromarray(np.stack(np.broadcast_arrays(ramp[None, :], ramp[:20, None], 90), 2).astype(np.uint8))


@pytest.mark.parametrize(("plugin", "options"), [(HEIF, {"quality": 95}), (JXL, {"lossless": True})])
def test_pictures_are_decoded_whatever_their_name(
    plugin: Plugin, options: dict[str, Any], gradient: Image.Image
) -> None:
    data = encoded(gradient, plugin, **options)
    decoded = decode(data)
    assert isinstance(decoded, Decoded) and decoded.suffix == ""
    difference = np.abs(np.asarray(decoded.image).astype(int) - np.asarray(gradient))
    assert decoded.image.mode == "RGB" and difference.mean() < 4
    assert decode(data, 599) == Rejected("too large: 30x20 is more than 599 pixels")
    assert isinstance(broken := decode(data[: len(data) // 2]), Rejected) and broken.reason


@pytest.mark.parametrize(("plugin", "size"), [(HEIF, (20, 30)), (JXL, (30, 20))])
def test_a_picture_is_turned_upright_once(plugin: Plugin, size: tuple[int, int], gradient: Image.Image) -> None:
    """HEIC's plug-in turns it by its Exif; JPEG XL's decoder by the codestream, and its Exif counts for nothing."""
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(encoded(gradient, plugin, exif=exif.tobytes()))
    assert isinstance(decoded, Decoded) and decoded.image.size == size
