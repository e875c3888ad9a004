"""Stage evaluate: samples from random snippets, measured against pictures, beside a floor and a ceiling."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from flows import cluster
from flows.evaluator import Chunk, Evaluator, Shares
from flows.extraction import read_block
from flows.ingest import IMAGES
from flows.pictures import pairs
from flows.progress import Report
from flows.recipe import Recipe
from flows.stage import Job, Outcome, Part, Plan, Stage, StageError
from flows.train import TRAINING, chosen
from flows.weights import identity
from gmem.metrics import FeatureSums, Protocol, Result, guidance_text, measure
from storage.bank import Bank
from storage.checkpoints import Checkpoint
from storage.samples import read_samples
from storage.shards import index_shards, read_index, read_shard

VERSION = 1
SPLITS = ("train", "held_out")
CHUNK = 256
"""Samples written together: what a kill can cost, and the unit that actors share out."""
PAIRS = 32
REFERENCE_SEED = 20_240_601
"""Draws the reference pictures: another seed than the snippets', so that the two are not the same pictures."""


def _step(plan: Plan) -> int:
    """The step evaluated: that of the chosen checkpoint, or the one the training will end with."""
    training = plan.artifact(TRAINING)
    checkpoint = chosen(plan.recipe, training) if plan.done(TRAINING) else None
    return checkpoint.step if checkpoint else plan.recipe.train.steps


def _detector(recipe: Recipe) -> dict[str, Any]:
    inception = recipe.evaluate.inception
    return {"encoder": identity(recipe.evaluate.encoder), "inception": identity(inception) if inception else None}


def _sampling(plan: Plan) -> dict[str, Any]:
    return {"sample": plan.recipe.sample.identity(), "samples": plan.recipe.evaluate.samples, "step": _step(plan)}


STATISTICS = Part(
    "statistics", VERSION, lambda plan: _detector(plan.recipe) | {"samples": plan.recipe.evaluate.samples}, (IMAGES,)
)
SAMPLES = Part("samples", VERSION, lambda plan: _sampling(plan) | _detector(plan.recipe), (TRAINING,))
REPORT = Part(
    "report",
    VERSION,
    lambda plan: {"evaluate": plan.recipe.evaluate.identity("encoder", "inception"), "step": _step(plan)},
    (SAMPLES, STATISTICS),
)


def job(job: Job, report: Report) -> Outcome:
    """Features of the reference pictures, then the samples, then the numbers; each part is kept as it is finished."""
    recipe = job.recipe
    checkpoint = chosen(recipe, job.artifact("training"))
    assert checkpoint is not None, "the training is an input and therefore complete"
    index = read_index(job.artifact("images").uri)
    bank = Bank(job.artifact("bank").uri, storage_options=job.store.storage_options)
    plans = {split: _snippets(bank, index, split, recipe) for split in SPLITS}
    plans = {split: ids for split, ids in plans.items() if len(ids) >= 2}
    if not plans:
        raise StageError("evaluation needs at least 2 pictures of a split; add pictures or raise data.held_out")
    have = cluster.resources(recipe.cluster)
    actors = cluster.pool(Evaluator, have, job, checkpoint)

    total = sum(len(ids) for ids in plans.values())
    report.total(4 * total)
    references = {split: _reference(job, index, split, len(ids), actors, report) for split, ids in plans.items()}
    shares = {split: _sampled(job, split, ids, actors, report) for split, ids in plans.items()}
    identities = ray.get(actors[0].identities.remote())
    for actor in actors:
        ray.kill(actor)
    return _report(job, checkpoint, plans, references, shares, identities)


def _snippets(bank: Bank, index: pa.Table, split: str, recipe: Recipe) -> NDArray[np.int64]:
    """Ids of the snippets to sample from: random ones of the split, none twice, as many as there are pictures to compare."""
    available = len(index.filter(pa.compute.equal(index["split"], split)))
    count = min(recipe.evaluate.samples, available)
    return bank.sample_ids(split, count, recipe.sample.seed) if count else np.zeros(0, np.int64)


# --- what is compared with -------------------------------------------------------------------------------------------


def _reference(
    job: Job, index: pa.Table, split: str, count: int, actors: list[Any], report: Report
) -> dict[str, FeatureSums]:
    """Features of `count` pictures of the split, for each detector; read from the store when they are there."""
    path = job.artifact("statistics").path(f"{split}.npz")
    if job.store.files.exists(path):
        report.advance(count)
        return _read_sums(job.store.read_bytes(path))
    kept = index.filter(pa.compute.equal(index["split"], split))
    chosen_rows = np.sort(np.random.default_rng(REFERENCE_SEED).permutation(len(kept))[:count])
    samples = kept["sample"].to_numpy()[chosen_rows]
    calls = _read_calls(job.artifact("images").uri, index, samples, actors)
    merged = _merge(_counted(cluster.under_way(calls, 2 * len(actors)), report))
    job.store.write_bytes(path, _write_sums(merged))
    return merged


def _read_calls(images: str, index: pa.Table, samples: NDArray[np.int64], actors: list[Any]) -> Iterator[Any]:
    wanted = set(samples.tolist())
    for i, shard in enumerate(index_shards(index)):
        yield actors[i % len(actors)].reference.remote(read_block.remote(images, shard), wanted)


def _counted(results: Iterator[dict[str, FeatureSums]], report: Report) -> Iterator[dict[str, FeatureSums]]:
    for sums in results:
        report.advance(next(iter(sums.values())).count)
        yield sums


def _merge(parts: Iterator[dict[str, FeatureSums]]) -> dict[str, FeatureSums]:
    total: dict[str, FeatureSums] = {}
    for part in parts:
        for name, sums in part.items():
            # What comes out of the object store cannot be written to, so the sums begin as new ones.
            total.setdefault(name, FeatureSums(sums.moments, sums.kept)).merge(sums)
    return total


def _write_sums(sums: dict[str, FeatureSums]) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        **{f"{name}|{key}": array for name, one in sums.items() for key, array in one.arrays().items()},
    )
    return buffer.getvalue()


def _read_sums(data: bytes) -> dict[str, FeatureSums]:
    arrays: dict[str, dict[str, NDArray]] = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        for name in archive.files:
            detector, _, key = name.partition("|")
            arrays.setdefault(detector, {})[key] = archive[name]
    return {detector: FeatureSums.from_arrays(values) for detector, values in arrays.items()}


# --- what is measured ------------------------------------------------------------------------------------------------


def _sampled(job: Job, split: str, ids: NDArray[np.int64], actors: list[Any], report: Report) -> Shares:
    """Samples of a split, with the floor and the ceiling of the same ids."""
    starts = range(0, len(ids), CHUNK)
    chunks = [
        Chunk(split, start // CHUNK, np.arange(start, min(start + CHUNK, len(ids))), ids[start : start + CHUNK])
        for start in starts
    ]
    calls = (actors[i % len(actors)].run.remote(chunk) for i, chunk in enumerate(chunks))
    results = cluster.under_way(calls, 2 * len(actors))
    total = Shares()
    for shares in results:
        report.advance(3 * shares.count)
        total.merge(shares)
    return total


def _report(
    job: Job,
    checkpoint: Checkpoint,
    plans: dict[str, NDArray[np.int64]],
    references: dict[str, dict[str, FeatureSums]],
    shares: dict[str, Shares],
    detectors: dict[str, dict[str, str]],
) -> Outcome:
    results: list[Result] = []
    metrics: dict[str, float] = {}
    for split in plans:
        for name, reference in references[split].items():
            for what in ("samples", "floor", "ceiling"):
                sums: FeatureSums = getattr(shares[split], what)[name]
                protocol = _protocol(job.recipe, checkpoint, split, sums.count, shares[split].calls, detectors[name])
                found = measure(
                    sums,
                    reference,
                    protocol,
                    f"{what} of {split}, training {checkpoint.manifest.training} step {checkpoint.step}",
                )
                results += found
                metrics |= {f"{split}/{what}/{result.metric}": result.value for result in found}
    artifact = job.artifact("report")
    job.store.write_json(artifact.path("report.json"), [asdict(result) for result in results])
    pictures = {f"pairs-{split.replace('_', '-')}": _pairs(job, split) for split in plans}
    counts = {"rows": sum(len(ids) for ids in plans.values())} | {split: len(ids) for split, ids in plans.items()}
    lines = _lines(job, plans, metrics, pictures)
    return Outcome(
        counts,
        details={"step": checkpoint.step, "metrics": metrics, "lines": lines},
        metrics=metrics,
        pictures=pictures,
    )


def _protocol(
    recipe: Recipe, checkpoint: Checkpoint, split: str, count: int, calls: int, detector: dict[str, str]
) -> Protocol:
    sample = recipe.sample
    return Protocol(
        **detector,
        reference=f"{split} pictures of {recipe.name} at {recipe.data.image_size} px",
        reference_hash=checkpoint.manifest.bank.fingerprint if checkpoint.manifest.bank else "unknown",
        reference_count=None,
        count=count,
        seed=sample.seed,
        sampler=f"{sample.kind} {sample.method}",
        steps=sample.steps,
        calls=calls,
        guidance=guidance_text(sample.guidance, sample.guidance_from, sample.guidance_until),
        snippets=f"random snippets of {split} pictures, none twice",
        latents=f"{checkpoint.manifest.tokenizer.get('name', 'unknown')}, {'draw' if recipe.tokenizer.draw else 'mean'} of the posterior",
    )


def _pairs(job: Job, split: str) -> str:
    """A picture of the first samples of a split below the pictures their snippets came from; returns its URI."""
    made = list(islice(read_samples(job.store, job.artifact("samples").path(f"{split}-000000.tar")), PAIRS))
    index = read_index(job.artifact("images").uri)
    place = dict(zip(index["sample"].to_pylist(), index["shard"].to_pylist(), strict=True))
    sources: dict[int, NDArray[np.uint8]] = {}
    wanted = [row.snippet // 2 for row in made]
    for shard in {place[sample] for sample in wanted}:
        sources |= {p.sample: p.image for p in read_shard(job.artifact("images").uri, shard) if p.sample in wanted}
    path = job.artifact("report").path(f"pairs-{split}.png")
    job.store.write_bytes(
        path, pairs(np.stack([sources[sample] for sample in wanted]), np.stack([row.image for row in made]))
    )
    return path


def _lines(
    job: Job, plans: dict[str, NDArray[np.int64]], metrics: dict[str, float], pictures: dict[str, str]
) -> list[str]:
    """What a person reads at the end of a run."""
    lines = []
    for split, ids in plans.items():
        for name, value in metrics.items():
            here, what, metric = name.split("/")
            if here == split and what == "samples" and metric.startswith(("fd-", "fid")):
                floor, ceiling = metrics[f"{split}/floor/{metric}"], metrics[f"{split}/ceiling/{metric}"]
                lines.append(
                    f"{metric} of {len(ids)} samples from {split.replace('_', '-')} snippets: [bold]{value:.4g}[/] "
                    f"(floor, the tokenizer's reconstructions: {floor:.4g}; ceiling, pure noise decoded: {ceiling:.4g})"
                )
    lines += [f"{title}: {path}" for title, path in pictures.items()]
    return lines


STAGE = Stage("evaluate", "samples", (STATISTICS, SAMPLES, REPORT), job)
