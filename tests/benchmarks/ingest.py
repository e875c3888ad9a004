"""Pictures checked, decoded, cropped and written into shards, in one process: beside what decoding alone would allow."""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
from measured import Measured, alternating
from numpy.typing import NDArray
from PIL import Image

from storage.images.decoding import centre_crop
from storage.images.shards import ShardPlan, write_shard
from storage.images.sources import list_source

HEIGHT, WIDTH, SIZE = 375, 500, 256
"""As ImageNet's pictures are in the mean, and what is trained on."""


def natural(random: np.random.Generator) -> NDArray[np.uint8]:
    """Noise whose spectrum falls as that of photographs does, uint8 [H, W, 3]."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = 1

    def field() -> NDArray[np.float64]:
        spectrum = np.fft.rfft2(random.standard_normal((HEIGHT, WIDTH))) / frequency**1.1
        return np.fft.irfft2(spectrum, s=(HEIGHT, WIDTH))

    light = field()
    colours = np.stack([light + 0.3 * field() for _ in range(3)], axis=-1)
    standard = (colours - colours.mean()) / colours.std()
    return (120 + 50 * standard).clip(0, 255).astype(np.uint8)


def write(folder: Path, pictures: int) -> list[bytes]:
    """JPEG files of quality 92, some 115 KB each, and what is in them."""
    random, files = np.random.default_rng(0), []
    for number in range(pictures):
        buffer = io.BytesIO()
        Image.fromarray(natural(random)).save(buffer, "JPEG", quality=92)
        (folder / f"{number:05d}.jpg").write_bytes(buffer.getvalue())
        files.append(buffer.getvalue())
    return files


def ours(source: Path, target: Path) -> Callable[[], float]:
    listing, plan, numbers = list_source(str(source)), ShardPlan(str(source), SIZE, 0.0), count()
    entries = listing.slice(0, len(listing.table))

    def ingest() -> float:
        kept, refused = write_shard(str(target), next(numbers), entries, plan, care="none")
        assert not refused
        return kept

    return ingest


def decoding(files: list[bytes], crop: bool) -> Callable[[], float]:
    def decode() -> float:
        for data in files:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            if crop:
                centre_crop(image, SIZE)
        return len(files)

    return decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gmem-bench-") as name:
        source, target = Path(name) / "source", Path(name) / "images"
        source.mkdir()
        files = write(source, asked.pictures)
        rates = alternating(
            asked.rounds, ours=ours(source, target), decode=decoding(files, False), crop=decoding(files, True)
        )
    others = {"decode alone": rates["decode"], "decode and crop": rates["crop"]}
    note = f"{WIDTH}x{HEIGHT} JPEG to {SIZE} px, a process and core"
    Measured("ingest", rates["ours"], "pictures/s", others, rates["crop"], note).tell()
    Measured("ingest, share of decoding and cropping alone", rates["ours"] / rates["crop"], "").tell()


if __name__ == "__main__":
    main()
