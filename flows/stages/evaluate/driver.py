"""Stage evaluate: samples from random snippets, measured against pictures, beside a floor and a ceiling."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flows.cluster.calls import result, under_way
from flows.cluster.workers import Worker, pool
from flows.engine.context import Context, Made
from flows.engine.errors import StageError
from flows.engine.progress import Progress
from flows.models.resolve import average_of
from flows.models.snippets import NOBODY
from flows.recipe.model import Recipe
from flows.stages.evaluate import drawing, references, report
from flows.stages.evaluate.likeness import pixel_copies_of
from flows.stages.evaluate.references import open_adm
from flows.stages.evaluate.report import Found
from flows.stages.evaluate.stage import STAGE, memorisation_detector, searched, sources_known
from flows.stages.evaluate.worker import CHUNK, SEEDS, Chunk, Evaluator, Shares
from flows.stages.sampling import kept_with_guide, record_of, subject_of
from gmem.metrics import Memorisation, Nearest, Overlaps, Sums, memorisation, overlap
from storage.ids import sample_of
from storage.images.index import read_index
from storage.images.shards import HELD_OUT, TRAIN
from storage.tables.bank import Bank
from storage.tracking.models import Data

SPLITS = (TRAIN, HELD_OUT)
VARIED = 8
"""Snippets of a split of which several samples are made."""


def run(context: Context, progress: Progress) -> dict[str, Made]:
    """Features of the reference pictures, then the samples, then the numbers; each part is kept as it is finished."""
    # What is measured, and that it stays for as long as the report does.
    recipe = context.recipe
    checkpoint, bank = subject_of(context, "samples")
    guide = kept_with_guide(context, checkpoint, "report")
    index = read_index(context.artifact("images").uri, columns=["sample", "shard", "split"])

    # How much there is to do: pictures of each split, their samples with floor and ceiling, several of a few snippets.
    file = open_adm(recipe.evaluate.reference) if recipe.evaluate.reference else None
    plans = _plans(recipe, bank, index)
    pictures = {split: len(ids) for split, ids in plans.items()}
    training = _searched(recipe, index)
    if training:
        pictures.setdefault(HELD_OUT, min(recipe.evaluate.samples, _count(index, HELD_OUT)))
    varied = {split: ids[:VARIED] for split, ids in plans.items()}
    sampled = sum(3 * len(ids) + SEEDS * len(varied[split]) for split, ids in plans.items())
    progress.total(sum(pictures.values()) + sampled + training)

    with pool(recipe.cluster, STAGE.resources(recipe.cluster), Evaluator, context, checkpoint) as workers:
        # Features, on the workers.
        seen = references.of_pictures(context, index, pictures, workers, progress)
        against = references.of_file(context, file, workers) if file else None
        shares = _sampled(context, index, plans, workers, progress)
        seeds = _over_seeds(varied, workers, progress)

        # Copies: the training pictures nearest to samples, in features and then in pixels.
        found = _memorised(context, index, plans, shares, seen, workers, progress) if training else {}
        memorised = found.pop(memorisation_detector(recipe.evaluate), {})
        pixels = pixel_copies_of(context, index, memorised, seen) if memorised else {}

        # Numbers and figures, here, and what needs a GPU still on the workers.
        detectors, tokenizer = result(workers[0].call(Evaluator.identities))
        measured = Found(
            context=context,
            checkpoint=checkpoint,
            guide=guide,
            bank=bank,
            references=seen,
            file=against,
            shares=shares,
            seeds=seeds,
            memorised=memorised,
            copies=found,
            pixels=pixels,
            searched=training,
            detectors=detectors,
            tokenizer=tokenizer,
            overlaps=_overlaps(recipe, workers),
        )
        return _made(measured, plans)


def _overlaps(recipe: Recipe, workers: list[Worker]) -> Overlaps:
    """Neighbours are found where the GPUs are: this process has none, though it may see one that Ray gave to a worker."""
    if not STAGE.resources(recipe.cluster).gpus:
        return overlap
    return lambda *asked: result(workers[0].call(Evaluator.overlap, *asked))


def _plans(recipe: Recipe, bank: Bank, index: pa.Table) -> dict[str, NDArray[np.int64]]:
    """Ids of the snippets to sample from, by split: random ones, as many as there are pictures to compare, and none twice
    unless fewer are kept.

    Of the recipe's own bank those of its pictures: rows that were added since have neither latent nor picture.
    """
    plans: dict[str, NDArray[np.int64]] = {}
    for split in SPLITS:
        count = min(recipe.evaluate.samples, _count(index, split))
        if count < 2:
            continue
        if recipe.evaluate.snippets == "prior":
            plans[split] = np.full(count, NOBODY)
            continue
        condition = f"split = '{split}'"
        if not recipe.evaluate.bank:
            condition += " AND origin = 'dataset'"
        available = len(bank.matching(f"{condition} AND NOT flipped"))
        drawn = min(count, available)
        if drawn >= 2:
            plans[split] = bank.sample(drawn, recipe.sample.seed, condition)
    if not plans:
        raise StageError(
            "evaluation needs at least 2 pictures, and 2 snippets of the bank, of one split; add pictures or raise data.held_out"
        )
    return plans


def _count(index: pa.Table, split: str) -> int:
    return pc.sum(pc.equal(index["split"], split)).as_py() or 0


def _searched(recipe: Recipe, index: pa.Table) -> int:
    """How many training pictures are searched for the nearest ones: all, where held-out ones can be compared with."""
    possible = recipe.evaluate.memorisation and _count(index, HELD_OUT) >= 2
    return _count(index, TRAIN) if possible else 0


def _sampled(
    context: Context, index: pa.Table, plans: dict[str, NDArray[np.int64]], workers: list[Worker], progress: Progress
) -> dict[str, Shares]:
    """Samples of every split, with the floor and the ceiling of as many."""
    shares: dict[str, Shares] = {}
    for split, ids in plans.items():
        first = not shares
        chunks = []
        for number, start in enumerate(range(0, len(ids), CHUNK)):
            some = ids[start : start + CHUNK]
            chunks.append(Chunk(split, number, np.arange(start, start + len(some)), some, first))
        calls = (workers[i % len(workers)].call(Evaluator.run, chunk) for i, chunk in enumerate(chunks))
        shares[split] = total = Shares()
        for part in under_way(calls, 2 * len(workers)):
            progress.advance((1 + bool(part.floor) + bool(part.ceiling)) * part.count)
            total.merge(part)
        if not total.ceiling:  # decoded noise is the same for every split
            progress.advance(total.count)
            total.ceiling = next(iter(shares.values())).ceiling
    if lacking := {split: len(plans[split]) for split, each in shares.items() if not each.floor}:
        for split, floor in references.reconstructions(context, index, lacking, workers, progress).items():
            shares[split].floor = floor
    return shares


def _over_seeds(varied: dict[str, NDArray[np.int64]], workers: list[Worker], progress: Progress) -> dict[str, Sums]:
    """Samples of a few snippets of every split under several seeds."""
    calls = {
        split: workers[i % len(workers)].call(Evaluator.over_seeds, split, ids)
        for i, (split, ids) in enumerate(varied.items())
    }
    seeds = {}
    for split, call in calls.items():
        seeds[split] = result(call)
        progress.advance(SEEDS * len(varied[split]))
    return seeds


def _memorised(
    context: Context,
    index: pa.Table,
    plans: dict[str, NDArray[np.int64]],
    shares: dict[str, Shares],
    seen: dict[str, Sums],
    workers: list[Worker],
    progress: Progress,
) -> dict[str, dict[str, Memorisation]]:
    """Samples of every split and held-out pictures, each with its nearest training picture: by detector and split."""
    evaluate = context.recipe.evaluate
    asked = {name: [each.samples[name] for each in shares.values()] for name in searched(evaluate)}
    for name, sums in asked.items():
        sums.append(seen[HELD_OUT][name])
    queries = {name: np.concatenate([each.features("pool") for each in sums]) for name, sums in asked.items()}
    nearest = references.nearest_of(context, index, queries, workers, progress)
    known = sources_known(evaluate)
    found = {}
    for name, sums in asked.items():
        *parts, held_out = _split(nearest[name], [each.count for each in sums])
        if np.median(held_out.distance) == 0:
            progress.note("most held-out pictures are copies of training pictures, so memorisation cannot be measured")
            return {}
        found[name] = {
            split: memorisation(part, held_out, sample_of(ids) if known and split == TRAIN else None)
            for part, (split, ids) in zip(parts, plans.items(), strict=True)
        }
    return found


def _split(nearest: Nearest, lengths: list[int]) -> list[Nearest]:
    parts, start = [], 0
    for length in lengths:
        rows = slice(start, start + length)
        part = Nearest(nearest.queries[rows])
        part.keep(nearest.distance[rows], nearest.id[rows])
        parts.append(part)
        start += length
    return parts


def _made(found: Found, plans: dict[str, NDArray[np.int64]]) -> dict[str, Made]:
    context, results = found.context, report.results_of(found)
    report.write(context, results, found.memorised)
    figures = drawing.figures(context, list(plans), found.memorised)
    metrics = {f"{place}/{result.metric}": result.value for place, part in results.items() for result in part}
    weights = found.checkpoint.weights(average_of(found.checkpoint, context.recipe))
    images = Data.of(f"{context.recipe.name}-images", context.fingerprints["images"], context.versions.get("images"))
    context.run.judge(weights.sha256, metrics, found.checkpoint.step, images)
    counts = {"rows": sum(len(ids) for ids in plans.values())} | {split: len(ids) for split, ids in plans.items()}
    record = record_of(context, found.checkpoint, found.guide, found.bank)
    lines = report.lines(results, report.sampled(found))
    compared = {split: next(iter(sums.values())).count for split, sums in found.references.items()}
    return {
        "statistics": Made({"rows": sum(compared.values())} | compared, details={"detectors": found.detectors}),
        "samples": Made(counts, details=record),
        "report": Made(
            counts,
            details=record | {"metrics": metrics, "lines": lines},
            metrics=metrics,
            figures=figures,
        ),
    }
