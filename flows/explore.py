"""Look into a recipe's memory and generate from it: for commands, notebooks and pages alike. See also `flows.incoming`.

recipe = load("emoji")
bank = open_bank(recipe)
ids = bank.sample(8, seed=0, where="class = 'flags'")
made = generate(recipe, bank, ids)
Path("samples.png").write_bytes(figures.grid(made.images))
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.engine.errors import StageError
from flows.engine.progress import Progress
from flows.recipe.model import Recipe
from storage.store import Store

if TYPE_CHECKING:
    from flows.models.snippets import Snippets
    from storage.checkpoints import Checkpoint
    from storage.tables.bank import Bank


class Generated(NamedTuple):
    """What came of a generation."""

    images: NDArray[np.uint8]
    """[N, H, W, 3]"""
    calls: int
    """The most network calls that a sample took."""
    step: int
    """Of the checkpoint."""


def open_bank(recipe: Recipe, uri: str | None = None, version: int | str | datetime | None = None) -> Bank:
    """A bank to search, to draw snippets from, to sample with and to edit.

    Args:
        recipe: whose store is looked into, and whose own finished bank it is unless `uri` names another; what it keeps
            of the bank is the opened bank's `memory`.
        uri: an artifact, in full or relative to the store, such as `bank/emoji-0123456789ab`, or its fingerprint.
        version: a version, a tag or a time; none: the newest.

    Raises:
        Refused: there is none; says what to run.
    """
    from flows.engine.stage import Plan
    from flows.models import resolve
    from flows.stages.bank.stage import BANK, MEMORY

    if uri:
        return resolve.open_bank(uri, Store(recipe.store), version)
    plan = Plan(recipe)
    for output in (BANK, MEMORY):
        if output.wanted(recipe) and not plan.artifact(output).complete:
            raise StageError(
                f"recipe {recipe.name} has no {output.kind} in {recipe.store} yet; run 'gmem run' with the same store"
            )
    bank = resolve.open_bank(plan.artifact(BANK).uri, plan.store, version)
    if MEMORY.wanted(recipe):
        from flows.models.memory import open_memory

        bank.kept_by = partial(open_memory, plan.artifact(MEMORY))
    return bank


def kept_of(recipe: Recipe, bank: Bank) -> dict[str, Any] | None:
    """What a recipe keeps of its own bank, at the version that was opened by `open_bank`; None: all.

    `kept` snippets of `of` training pictures, chosen by `choice`, as `rank` numbers each (None: whole), with `cosine` (to
    those that stand for them) and `energy` (the share of the variance), where there is such a loss; `uri` of the artifact.
    """
    from flows.engine.stage import Plan
    from flows.stages.bank.stage import MEMORY

    manifest = Plan(recipe).artifact(MEMORY).manifest() if bank.memory else None
    if manifest is None or bank.memory is None:
        return None
    some = recipe.bank.snippets is not None
    return {
        "kept": len(np.unique(bank.memory.kept)) if some else manifest.counts["rows"],
        "of": len(bank.memory.pictures) if some else manifest.counts["rows"],
        "choice": recipe.bank.choice if some else None,
        "rank": recipe.bank.rank,
        "uri": Plan(recipe).artifact(MEMORY).uri,
        **manifest.details["metrics"],
    }


def version_of(text: str | None) -> int | str | datetime | None:
    """A number is a version, what reads as a time (ISO 8601) is one, anything else is a tag."""
    if text is None or not text.isdecimal():
        try:
            return text and datetime.fromisoformat(text)
        except ValueError:
            return text
    return int(text)


def open_network(recipe: Recipe, uri: str | None = None) -> Checkpoint:
    """A checkpoint to sample from: at `uri`, or that of the recipe's training which its evaluation would take."""
    from flows.engine.stage import Plan
    from flows.models import resolve
    from flows.stages.train.stage import TRAINING, chosen_checkpoint

    if uri:
        return resolve.open_network(uri, Store(recipe.store))
    checkpoint = chosen_checkpoint(recipe, Plan(recipe).artifact(TRAINING))
    if checkpoint is None:
        raise StageError(
            f"recipe {recipe.name} has no checkpoint in {recipe.store} yet; run 'gmem run' or name one with --network"
        )
    return checkpoint


def generate(
    recipe: Recipe,
    bank: Bank,
    ids: NDArray[np.int64],
    network: str | None = None,
    progress: Progress | None = None,
    noise: float = 0.0,
    neighbours: int = 0,
) -> Generated:
    """Samples from snippets of a bank, with the recipe's sampler and seed, on the GPU where there is one.

    Args:
        recipe: its `sample` section says how; `sample.seed` and a sample's place in `ids` decide its noise.
        bank: where the snippets are.
        ids: [N] ids of rows; one may come several times.
        network: URI of a checkpoint, training or imported network; None: the recipe's own.
        progress: is told how many there are and are made.
        noise: how far each snippet is moved at random, beside its length of 1.
        neighbours: where above 0, each is first mixed with one of its so many nearest others.
    """
    from flows.models.snippets import of_rows

    snippets = of_rows(bank, ids, recipe.sample.seed, noise, neighbours)
    return generate_from(recipe, bank, snippets, network, progress)


class Drawn(NamedTuple):
    """Snippets that are nobody's, and the pictures that come nearest."""

    snippets: Snippets
    nearest: NDArray[np.int64]
    """[N] ids of rows of the bank."""
    similarity: NDArray[np.float64]
    """[N] cosines with those."""


def draw_snippets(recipe: Recipe, bank: Bank, count: int, class_name: str | None = None) -> Drawn:
    """Snippets drawn from the recipe's prior, which belong to no picture.

    Args:
        recipe: whose prior it is; `sample.seed` decides what is drawn.
        bank: in which the nearest rows are searched.
        count: how many.
        class_name: only of this class; None: of any.

    Raises:
        Refused: no prior was learned yet, or of no such class; says what to run.
    """
    from flows.engine.stage import Plan
    from flows.models.snippets import label_of, of_nobody, open_prior
    from flows.stages.prior.stage import PRIOR
    from storage.checkpoints import latest

    artifact = Plan(recipe).artifact(PRIOR)
    checkpoint = latest(artifact) if artifact.complete else None
    if checkpoint is None:
        raise StageError(
            f"recipe {recipe.name} has no prior in {recipe.store} yet, or its bank was edited since; "
            f"run 'gmem stage prior {recipe.name} --set prior.steps=800'"
        )
    label = None if class_name is None else label_of(bank, class_name)
    snippets = of_nobody(open_prior(checkpoint), count, recipe.sample.seed, label)
    found = [bank.search(snippet, k=1) for snippet in snippets.vectors]
    distances = np.array([row["_distance"][0].as_py() for row in found])
    return Drawn(snippets, np.array([row["id"][0].as_py() for row in found]), 1 - distances)


def walk(
    recipe: Recipe,
    bank: Bank,
    ends: tuple[int, int],
    steps: int,
    method: str = "spherical",
    network: str | None = None,
    progress: Progress | None = None,
) -> Generated:
    """Samples from mixtures on the way from one row's snippet to another's, all of the same noise.

    Args:
        recipe: its `sample` section says how.
        bank: where the two rows are; nothing is added to it.
        ends: ids of the rows.
        steps: how many samples, the ends included.
        method: of mixing, as in `bank_mixing.mix`.
        network: as for `generate`.
        progress: as for `generate`.
    """
    import torch

    from flows.models.snippets import NOBODY, Snippets

    shares = np.linspace(0, 1, steps)
    mixed = [bank.mixture(ends, method, [1 - share, share]) for share in shares]
    nobody = np.full(steps, NOBODY)
    snippets = Snippets(torch.from_numpy(np.stack(mixed)), nobody, nobody, nobody)
    return generate_from(recipe, bank, snippets, network, progress, same_noise=True)


def generate_from(
    recipe: Recipe,
    bank: Bank,
    snippets: Snippets,
    network: str | None = None,
    progress: Progress | None = None,
    same_noise: bool = False,
) -> Generated:
    """Samples from snippets, whosever they are.

    Args:
        recipe: its `sample` section says how.
        bank: of whose encoder they are.
        snippets: N of them.
        network: as for `generate`.
        progress: as for `generate`.
        same_noise: whether they differ by their snippets alone.
    """
    import torch

    from flows.models.generation import load_generator, require_snippets
    from gmem.memory import normalise
    from gmem.pixels import channels_last

    checkpoint = open_network(recipe, network)
    if checkpoint.manifest.encoder:
        bank.require_encoder(checkpoint.manifest.encoder)
    require_snippets(checkpoint, bank.dim, bank.artifact)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = load_generator(checkpoint, recipe, device)
    count = len(snippets.ids)
    batches = generator.batches(
        normalise(snippets.vectors),
        torch.zeros(count, dtype=torch.int64) if same_noise else torch.arange(count),
        recipe.sample,
        recipe.sample.seed,
        torch.from_numpy(snippets.labels),
        size=recipe.sample.batch,
    )
    images, calls = [], 0
    if progress:
        progress.total(count)
    for batch, taken in batches:
        images.append(batch.cpu())
        calls = max(calls, taken)
        if progress:
            progress.advance(len(batch))
    return Generated(channels_last(torch.cat(images)), calls, checkpoint.step)
