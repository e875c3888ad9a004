"""Bytes, hours and money of a run, by arithmetic: ``python infra/sizing.py --pictures 1.28e6 --gpus 8``.

Sizes follow from the formats. Rates marked `measured` are of one device or core (docs/speed.md), none of so many together;
those marked `assumed` are guesses to be replaced by what a first run logs to MLflow.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

GRID, CHANNELS = 16, 32  # the latent of a 256-pixel picture under VA-VAE f16d32
PICTURE = 120_000  # bytes of a 256-pixel photograph in lossless WebP, measured
SNIPPET = 768  # DINOv2 ViT-B/14
COMPONENTS = 64  # kept of each patch token
HNSW_UNTIL = 5_000_000  # rows up to which the bank's index is a graph with a byte a dimension, beyond: product codes
PARAMETERS = 683.12e6  # XL/1
TRAINED = 498.0  # pictures a second of XL/1 on one H100, measured; published: 355 on H800
TOKENIZED, ENCODED = 500.0, 901.0  # rows a second and GPU: assumed, for lack of weights; measured on H100 in fp32
INGESTED, READ = (
    176.0,
    540.0,
)  # pictures a second and core, measured: of 500 x 375 JPEG to 256 px, and of what is stored
SAMPLES, CALLS = 50_000, 99  # of an evaluation; network calls a sample with 50 points of Heun
GPU_HOUR, GB_MONTH = 3.0, 0.023  # dollars, assumed


@dataclass(frozen=True)
class Run:
    """A collection, and how it is trained on. Bytes are decimal: 1 GB is 10⁹."""

    pictures: float
    mirror: bool = True
    images_trained: float = 200_000 * 1024

    @property
    def rows(self) -> float:
        return self.pictures * (2 if self.mirror else 1)

    @property
    def row_bytes(self) -> dict[str, float]:
        """Bytes of a row: of a picture for the shards, of a picture or its mirror image for the others."""
        return {
            "image shards": PICTURE,
            "latents": 2 * CHANNELS * GRID**2,
            "bank": 2 * SNIPPET + 2000,  # and a thumbnail and keys
            "patch tokens": 2 * COMPONENTS * GRID**2,
            "index": SNIPPET + 200 if self.rows <= HNSW_UNTIL else SNIPPET / 16 + 8,
        }

    def stored(self) -> dict[str, float]:
        """Bytes of everything that lasts."""
        tables = {
            name: each * (self.pictures if name == "image shards" else self.rows)
            for name, each in self.row_bytes.items()
        }
        return tables | {"checkpoints": 4 * 4 * PARAMETERS * 4}  # weights, average, two moments; three newest and best

    def gpu_seconds(self) -> dict[str, float]:
        """Seconds on one GPU. Sampling runs as fast as training does, a forward pass being a third of a step."""
        return {
            "latents": self.rows / TOKENIZED,
            "bank": self.rows / ENCODED,
            "train": self.images_trained / TRAINED,
            "evaluate": SAMPLES * (CALLS / 3 / TRAINED + 1 / ENCODED),
        }

    def core_hours(self) -> float:
        """CPU hours of ingest, and to read every picture for each of the two encodings."""
        return self.pictures * (1 / INGESTED + 2 / READ) / 3600


def size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def bytes_table(run: Run) -> str:
    """Markdown: what lasts, its bytes, and what they cost a month."""
    each, stored = run.row_bytes, run.stored()
    lines = ["| what | bytes a row | rows | in all |", "|---|---:|---:|---:|"]
    for name, total in stored.items():
        rows = f"{total / each[name]:.3g} × " if name in each else ""
        lines.append(
            f"| {name} | {f'{each[name]:,.0f}' if name in each else ''} | {rows.rstrip(' ×')} | {size(total)} |"
        )
    total = sum(stored.values())
    return "\n".join([*lines, f"| together, ${total / 1e9 * GB_MONTH:,.0f} a month | | | {size(total)} |"])


def hours_table(run: Run, gpus: list[int]) -> str:
    """Markdown: hours of each stage on so many GPUs if none ever waits, and what the GPU hours cost."""
    seconds = run.gpu_seconds()
    lines = [
        "| hours on | " + " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in gpus) + " |",
        "|---|" + "---:|" * len(gpus),
    ]
    for name, each in seconds.items():
        lines.append(f"| {name} | " + " | ".join(f"{each / n / 3600:.3g}" for n in gpus) + " |")
    total = sum(seconds.values()) / 3600
    lines.append("| together | " + " | ".join(f"{total / n:.3g}" for n in gpus) + " |")
    return "\n".join(
        [*lines, f"\n{total:,.0f} GPU hours, ${total * GPU_HOUR:,.0f}; {run.core_hours():,.0f} CPU core hours."]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes, hours and money of a run, by arithmetic.")
    parser.add_argument("--pictures", type=float, default=1.28e6)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--epochs", type=float, help="passes over the pictures; none: 200,000 steps of 1024")
    parser.add_argument("--no-mirror", action="store_true")
    given = parser.parse_args()
    trained = given.epochs * given.pictures if given.epochs else Run.images_trained
    run = Run(given.pictures, not given.no_mirror, trained)
    print(bytes_table(run), hours_table(run, given.gpus), sep="\n\n")


if __name__ == "__main__":
    main()
