"""The report of an evaluation: every number with its protocol, and the lines a person reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from flows.engine.context import Context
from flows.models.resolve import artifact_at
from flows.recipe.model import Recipe
from flows.stages.evaluate.references import File
from flows.stages.evaluate.stage import INCEPTION, memorisation_detector
from flows.stages.evaluate.worker import NEIGHBOURS, SEEDS, Shares
from gmem.metrics import (
    FeatureSums,
    Memorisation,
    Overlaps,
    PixelCopies,
    Protocol,
    Result,
    Sums,
    diversity_result,
    guidance_text,
    measure,
    memorisation_results,
    overlap,
    pixel_copies_result,
)
from storage.checkpoints import Checkpoint
from storage.images.shards import HELD_OUT, TRAIN
from storage.tables.bank import Bank

KINDS = ("samples", "floor", "ceiling")
SHARES = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Found:
    """What the jobs of an evaluation brought together."""

    context: Context
    checkpoint: Checkpoint
    guide: Checkpoint | None
    bank: Bank
    """At the version that was sampled from."""
    references: dict[str, Sums]
    """Features of the recipe's pictures by split."""
    file: File | None
    shares: dict[str, Shares]
    seeds: dict[str, Sums]
    """Features of `SEEDS` samples of each of some snippets, by split."""
    memorised: dict[str, Memorisation]
    """By split, in the first detector's features."""
    copies: dict[str, dict[str, Memorisation]]
    """By the copy detector's name, and by split."""
    pixels: dict[str, PixelCopies]
    searched: int
    """Training pictures among which the nearest were searched."""
    detectors: dict[str, dict[str, str]]
    tokenizer: dict[str, Any]
    overlaps: Overlaps = overlap
    """Finds precision, recall, density and coverage: here on the CPU, since a GPU that can be seen here is another's."""


def name_of(checkpoint: Checkpoint) -> str:
    """A network's name for people: its training, or the file it was imported from, and its step."""
    manifest = checkpoint.manifest
    origin = f"training {manifest.training}" if manifest.training else f"network {manifest.details.get('source', '')}"
    return f"{origin.strip()} step {checkpoint.step}"


def sampled(found: Found) -> str:
    """The name of the network that was sampled, with its average where the recipe names one."""
    ema, name = found.context.recipe.sample.ema, name_of(found.checkpoint)
    return name if ema is None else f"{name}, average of decay {ema}"


def results_of(found: Found) -> dict[str, list[Result]]:
    """Every number by `split/kind`, kind being samples, floor or ceiling."""
    results: dict[str, list[Result]] = {}
    for split, shares in found.shares.items():
        for kind in KINDS:
            sums: Sums = getattr(shares, kind)
            subject = f"{kind} of {split}, {sampled(found)}"
            numbers = [r for name, one in sums.items() if one.moments for r in _measured(found, split, name, one)]
            results[f"{split}/{kind}"] = [replace(each, subject=subject) for each in numbers]
        results[f"{split}/samples"] += _over_seeds(found, split)
        results[f"{split}/samples"] += _against_training(found, split)
    return results


def _measured(found: Found, split: str, detector: str, sums: FeatureSums) -> list[Result]:
    """Against the recipe's pictures, or as far as it goes against the file."""
    pictures, subsets = found.references[split][detector], found.context.recipe.evaluate.kernel_subsets
    protocol = _protocol(found, split, detector, sums.count)
    file = found.file if detector == INCEPTION else None
    how: dict[str, Any] = {
        "kernel_subsets": subsets,
        "overlaps": found.overlaps,
        "real": _other_pictures(found, split, detector),
    }
    if file is None:
        return measure(sums, pictures, protocol, **how)
    against = replace(protocol, reference=file.name, reference_hash=file.sha256)
    results = measure(sums, file.moments, against, features=file.features, **how)
    if file.features:
        return results
    known = {result.metric for result in results}
    return results + [r for r in measure(sums, pictures, protocol, **how) if r.metric not in known]


def _against_training(found: Found, split: str) -> list[Result]:
    """Memorisation, and copies in pixels, where the training pictures were searched."""
    if split not in found.memorised:
        return []
    recipe, subject = found.context.recipe, f"samples of {split}, {sampled(found)}"

    def searched(detector: str) -> Protocol:
        protocol = _protocol(found, split, detector, found.shares[split].count)
        return replace(protocol, reference=f"all training pictures {_of(recipe)}", reference_count=found.searched)

    first = searched(memorisation_detector(recipe.evaluate))
    results = memorisation_results(found.memorised[split], first, subject)
    results.append(pixel_copies_result(found.pixels[split], first, subject))
    for name, by_split in found.copies.items():
        results += memorisation_results(by_split[split], searched(name), subject)
    return results


def _over_seeds(found: Found, split: str) -> list[Result]:
    """How different the samples of one snippet are, for every detector."""
    subject, results = f"samples of {split}, {sampled(found)}", []
    for name, sums in found.seeds.get(split, {}).items():
        protocol = _protocol(found, split, name, sums.count)
        other = replace(protocol, reference="samples of other snippets", reference_count=sums.count)
        results.append(diversity_result(sums, SEEDS, other, subject))
    return results


def _other_pictures(found: Found, split: str, detector: str) -> FeatureSums | None:
    """Real pictures that the reference has not, where there are any: of the other split, and beside a file held-out ones."""
    beside_file = found.file is not None and detector == INCEPTION
    other = HELD_OUT if split == TRAIN or beside_file else TRAIN
    return found.references[other][detector] if other in found.references else None


def _protocol(found: Found, split: str, detector: str, count: int) -> Protocol:
    recipe = found.context.recipe
    sample, tokenizer = recipe.sample, found.tokenizer
    guide = f"the network of {name_of(found.guide)} ({_weights(found.guide)})" if found.guide else "zero snippet"
    return Protocol(
        **found.detectors[detector],
        reference=f"{split} pictures {_of(recipe)}",
        reference_hash=found.context.fingerprints["images"],
        reference_count=None,
        count=count,
        seed=sample.seed,
        sampler=sample.summary(),
        steps=sample.steps,
        calls=found.shares[split].calls,
        guidance=guidance_text(sample.guidance, sample.guidance_from, sample.guidance_until, guide),
        snippets=_snippets(found, split),
        latents=f"{tokenizer['name']} ({tokenizer['sha256'][:12]}), {'draw' if recipe.tokenizer.draw else 'mean'} of the posterior",
    )


def _of(recipe: Recipe) -> str:
    return f"of {recipe.name} at {recipe.data.image_size} px"


def _weights(checkpoint: Checkpoint) -> str:
    return checkpoint.manifest.files["ema.safetensors"].sha256[:12]


def _snippets(found: Found, split: str) -> str:
    evaluate, revision = found.context.recipe.evaluate, found.bank.content_revision
    edited = f", of the bank's revision {revision}" if revision > 1 else ""
    if evaluate.snippets == "prior":
        return f"drawn by the prior at step {found.context.parameters['samples']['prior_step']}{edited}"
    rows = "pictures"
    if evaluate.bank:
        rows = f"rows of {artifact_at(evaluate.bank, found.context.store).folder}"
    mixed = ""
    if evaluate.snippets == "mixed":
        mixed = f", each half and half with one of its {NEIGHBOURS} nearest"
    return f"random snippets of {split} {rows}, none twice{mixed}{edited}"


# --- what is kept and said -------------------------------------------------------------------------------------------


def write(context: Context, results: dict[str, list[Result]], memorised: dict[str, Memorisation]) -> None:
    """`report.json`: every result; `nearest.json`: each sample's nearest training picture and its distance."""
    artifact = context.artifact("report")
    context.store.write_json(artifact.path("report.json"), [asdict(each) for part in results.values() for each in part])
    if memorised:
        about = {
            split: {"nearest": each.nearest.tolist(), "distance": each.distances.tolist()}
            for split, each in memorised.items()
        }
        held_out = next(iter(memorised.values())).held_out_distances.tolist()
        context.store.write_json(artifact.path("nearest.json"), about | {"held_out_pictures": held_out})


def lines(results: dict[str, list[Result]], network: str) -> list[str]:
    """What a person reads at the end of a run; `network` is the name of what was measured."""
    said = []
    for place, part in results.items():
        split, _, kind = place.partition("/")
        if kind == "samples":
            values = {result.metric: result for result in part}
            said += [_line(split, values[name], results, network) for name in values if _family(name) in ("fd", "fid")]
            said += [_beside(split, values[name], values) for name in values if _family(name) == "mind"]
            said += _memorised(split, values.values())
    return said


def _family(metric: str) -> str:
    """A metric's name without its encoder's."""
    return metric.partition("-")[0]


def _line(split: str, result: Result, results: dict[str, list[Result]], network: str) -> str:
    where = {kind: {r.metric: r.value for r in results.get(f"{split}/{kind}", [])} for kind in KINDS[1:]}
    words = {"floor": "floor, the tokenizer's reconstructions", "ceiling": "ceiling, pure noise decoded"}
    said = [f"{words[kind]}: {values[result.metric]:.4g}" for kind, values in where.items() if result.metric in values]
    return (
        f"{result.metric} of {result.protocol.count} samples from {split.replace('_', '-')} snippets by {network}: "
        f"{result.value:.4g} ({'; '.join(said)})"
    )


def _beside(split: str, mind: Result, values: dict[str, Result]) -> str:
    """What one detector says besides the distance, as far as there were samples enough."""
    suffix = mind.metric.removeprefix("mind")
    ratio = values.get(f"fdr{suffix}" if suffix else "fidr")
    said = [f"FDr {ratio.value:.3g} (other real pictures: 1)"] if ratio else []
    said.append(f"MIND {mind.value:.3g}")
    said += [f"{name} {values[each].value:.2f}" for name in SHARES if (each := f"{name}{suffix}") in values]
    vendi = values[f"vendi{suffix}"]
    said.append(f"Vendi {vendi.value:.3g} (real pictures: {vendi.details['reference']:.3g})")
    if seeds := values.get(f"diversity{suffix}"):
        said.append(f"over seeds {seeds.value:.0%} as different as over snippets")
    return f"{mind.protocol.detector}, {split.replace('_', '-')} snippets: {', '.join(said)}"


def _memorised(split: str, results: Iterable[Result]) -> list[str]:
    found: dict[str, dict[str, Result]] = {}
    for result in results:
        family = _family(result.metric)
        if family.startswith("memorisation_"):
            found.setdefault(result.protocol.detector, {})[family.removeprefix("memorisation_")] = result
    if not found or split != TRAIN:
        return []
    parts, *others = found.values()
    source = (
        f"; the nearest is the snippet's own for {parts['from_source'].value:.0%}" if "from_source" in parts else ""
    )
    shares = (other["copied"] for other in others)
    elsewhere = "".join(f", by {share.protocol.detector} {share.value:.0%}" for share in shares)
    ratio, closer, copied, in_pixels = (parts[name].value for name in ("ratio", "closer", "copied", "copied_pixels"))
    return [
        f"nearest training pictures: {ratio:.2f} times as far as from held-out pictures; {closer:.0%} of the samples are "
        + f"nearer than 95 % of those, {copied:.0%} nearer than 99 % (copies; in pixels {in_pixels:.0%}{elsewhere}){source}"
    ]
