"""New pictures without training: added to the bank, generated from at once, and measured against themselves.

The network has never seen them, nor have tokenizer and encoder. What is made from their snippets is compared with their
own true pictures, and beside it stand: the same for pictures of the recipe that were held out; what the tokenizer makes
of the true pictures, nearer than which no network comes; and the nearest training picture, which costs nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from flows.engine.errors import StageError
from flows.engine.progress import Progress
from flows.engine.stage import Plan
from flows.explore import generate, open_bank
from flows.figures import pairs
from flows.incoming import add_pictures, source_pictures
from flows.recipe.model import Recipe
from flows.stages.ingest.stage import IMAGES
from gmem.encoder import load_encoder
from gmem.metrics.paired import Fidelity, fidelity
from gmem.pixels import channels_first, channels_last, from_bytes, to_bytes
from gmem.tokenizer import load_tokenizer
from storage.ids import sample_of
from storage.images.shards import HELD_OUT, TRAIN, read_pictures
from storage.tables.bank import Bank
from storage.tables.bank_where import equals

Pictures = NDArray[np.uint8]
"""[N, S, S, 3]"""
SHOWN = 16
FEWEST = 8
"""Pictures below which distances between sets mean nothing."""


@dataclass(frozen=True)
class Likeness:
    """Of one set of pictures: how near what was made comes to the true ones, and what that is to be compared with."""

    count: int
    generated: Fidelity
    tokenizer: Fidelity
    """Of the true pictures encoded and decoded: the floor."""
    nearest: Fidelity
    """Of the nearest training pictures."""


@dataclass(frozen=True)
class Adaptation:
    """What came of pictures that were added, beside held-out ones of the recipe."""

    added: Likeness
    held_out: Likeness
    step: int
    """Of the network."""
    figure: bytes
    """PNG: true pictures that were added, what was generated from them, and the nearest training pictures."""

    def to_dict(self) -> dict[str, object]:
        return {name: asdict(getattr(self, name)) for name in ("added", "held_out")} | {"step": self.step}

    @property
    def above_floor(self) -> float:
        """How many times as far above the tokenizer's floor added pictures lie as held-out ones, by paired distance."""
        ours, theirs = (each.generated.paired - each.tokenizer.paired for each in (self.added, self.held_out))
        return ours / theirs


class _Subjects(NamedTuple):
    """Rows of the bank with their true pictures."""

    ids: NDArray[np.int64]
    true: Pictures


def adapt(
    recipe: Recipe,
    source: str,
    batch: str,
    network: str | None = None,
    count: int = 256,
    progress: Progress | None = None,
) -> Adaptation:
    """Adds pictures to a recipe's bank, where they are not there yet, and measures what is generated from them.

    Args:
        recipe: whose bank it is; names tokenizer, encoders and sampler.
        source: pictures that the network has not seen, in any form that ingest reads.
        batch: their name in the bank.
        network: URI; None: the recipe's own.
        count: how many are measured, at most, and as many held-out ones.
        progress: is told how far each piece of the work is.
    """
    bank = open_bank(recipe)
    measured = _Measure(recipe, bank)
    add_pictures(recipe, bank, source, batch, progress=progress)
    bank.refresh()
    random = np.random.default_rng(recipe.sample.seed)
    added = _added(recipe, bank, source, batch, count, random)
    held_out = _held_out(recipe, bank, len(added.ids), recipe.sample.seed)
    likenesses, figure, step = [], b"", 0
    for subjects in (added, held_out):
        made = generate(recipe, bank, subjects.ids, network, progress)
        nearest = measured.nearest(subjects.ids)
        likenesses.append(measured.likeness(subjects.true, made.images, nearest))
        figure = figure or pairs(subjects.true[:SHOWN], made.images[:SHOWN], nearest[:SHOWN])
        step = made.step
    return Adaptation(likenesses[0], likenesses[1], step, figure)


def _added(recipe: Recipe, bank: Bank, source: str, batch: str, count: int, random: np.random.Generator) -> _Subjects:
    """Some of a batch's rows whose pictures the source still has."""
    rows = bank.scan(["key"], "origin = 'external' AND key IS NOT NULL").to_pylist()
    ids = {row["key"].partition("/")[2]: row["id"] for row in rows if row["key"].startswith(f"{batch}/")}
    true = source_pictures(recipe, source, ids.keys())
    keys = sorted(true)
    if len(keys) < FEWEST:
        raise StageError(
            f"only {len(keys)} pictures of {source} are in the bank as batch {batch}, and {FEWEST} are needed; add more"
        )
    chosen = [keys[place] for place in random.permutation(len(keys))[:count]]
    return _Subjects(np.array([ids[key] for key in chosen]), np.stack([true[key] for key in chosen]))


def _held_out(recipe: Recipe, bank: Bank, count: int, seed: int) -> _Subjects:
    condition = f"{equals('split', HELD_OUT)} AND origin = 'dataset'"
    there = len(bank.scan(["id"], f"{condition} AND NOT flipped"))
    if there < FEWEST:
        raise StageError(f"{there} pictures are held out, and {FEWEST} are needed to compare with; raise data.held_out")
    ids = bank.sample(min(count, there), seed, condition)
    return _Subjects(ids, _dataset_pictures(recipe, ids))


def _dataset_pictures(recipe: Recipe, ids: NDArray[np.int64]) -> Pictures:
    """The recipe's own pictures of rows, in the order of `ids`."""
    return read_pictures(Plan(recipe).artifact(IMAGES).uri, sample_of(ids).tolist())


class _Measure:
    """Tokenizer and evaluator, loaded once."""

    def __init__(self, recipe: Recipe, bank: Bank) -> None:
        if not recipe.evaluate.encoder:
            raise StageError("the recipe names no encoder to measure with; set evaluate.encoder")
        self.recipe, self.bank = recipe, bank
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.evaluator = load_encoder(recipe.evaluate.encoder, device, recipe.data.image_size)
        self.tokenizer = load_tokenizer(recipe.tokenizer.source, device)

    def likeness(self, true: Pictures, generated: Pictures, nearest: Pictures) -> Likeness:
        features = self._features(true)
        made = (generated, self._decoded(true), nearest)
        return Likeness(len(true), *(fidelity(self._features(each), features, each, true) for each in made))

    def nearest(self, ids: NDArray[np.int64]) -> Pictures:
        """The training picture whose snippet comes nearest to that of each row."""
        condition = f"{equals('split', TRAIN)} AND origin = 'dataset' AND NOT flipped"
        rows = [self.bank.search(int(row), 1, condition, columns=["id"])["id"][0].as_py() for row in ids]
        return _dataset_pictures(self.recipe, np.array(rows))

    def _decoded(self, pictures: Pictures) -> Pictures:
        parts = from_bytes(channels_first(pictures)).split(self.recipe.tokenizer.batch)
        decoded = [to_bytes(self.tokenizer.decode(self.tokenizer.encode(part))).cpu() for part in parts]
        return channels_last(torch.cat(decoded))

    def _features(self, pictures: Pictures) -> NDArray[np.float32]:
        parts = from_bytes(channels_first(pictures)).split(self.recipe.evaluate.batch)
        features: NDArray[np.float32] = torch.cat([self.evaluator(part).snippet.cpu() for part in parts]).numpy()
        return features


def lines(found: Adaptation) -> list[str]:
    """What a person reads."""
    said = [f"network of step {found.step:,}; distances in the evaluator's features, {found.added.count} pictures each"]
    for name, each in (("added", found.added), ("held out", found.held_out)):
        for kind in ("generated", "tokenizer", "nearest"):
            one: Fidelity = getattr(each, kind)
            said.append(
                f"{name}, {WORDS[kind]}: paired {one.paired:.4g}, FD {one.frechet:.4g}, recognised {one.recognised:.0%}, "
                f"pixels {one.pixels:.3g}"
            )
    said.append(f"above the floor, added pictures lie {found.above_floor:.2f} times as far as held-out ones")
    return said


WORDS = {
    "generated": "generated from the snippet",
    "tokenizer": "encoded and decoded (floor)",
    "nearest": "nearest training picture",
}
