"""Stage evaluate: samples from random snippets of the bank, measured against the pictures."""

from __future__ import annotations

from typing import Any

from flows.engine.context import Context
from flows.engine.errors import StageError
from flows.engine.stage import Output, Plan, Stage
from flows.models.resolve import bank_identity, guide_identity, network_identity, open_bank
from flows.recipe.model import Evaluate, Recipe, Sample
from flows.stages.bank.stage import BANK, UNEDITED, edits
from flows.stages.ingest.stage import IMAGES
from flows.stages.latents.stage import LATENTS
from flows.stages.train.stage import TRAINING, chosen_checkpoint
from gmem.weights import WeightsRef, identity

VERSION = 2
REPORT_VERSION = 4
"""Rises alone where what is said of the samples changes, and they do not."""
INCEPTION = "inception"


def named_encoders(evaluate: Evaluate) -> dict[str, str]:
    """Source of each encoder to measure with, by the name its metrics bear."""
    sources = [source for source in (evaluate.encoder, *evaluate.further_encoders) if source]
    names = {WeightsRef.parse(source).label: source for source in sources}
    if len(names) < len(sources):
        raise StageError("two encoders of evaluate bear the same name; give one folder or model only once")
    if not names and not evaluate.inception:
        raise StageError("the recipe names nothing to measure with; set evaluate.encoder or evaluate.inception")
    return names


def memorisation_detector(evaluate: Evaluate) -> str:
    """The detector in whose features the nearest training pictures are searched: the first."""
    return next(iter(named_encoders(evaluate)), INCEPTION)


def distance_metric(evaluate: Evaluate) -> str:
    """The Fréchet distance by which networks are ranked: in the features of that detector."""
    detector = memorisation_detector(evaluate)
    return "fid" if detector == INCEPTION else f"fd-{detector}"


def _detectors(evaluate: Evaluate) -> dict[str, Any]:
    return {
        "encoders": {name: WeightsRef.parse(source).identity() for name, source in named_encoders(evaluate).items()},
        "inception": identity(evaluate.inception) if evaluate.inception else None,
    }


def evaluated_step(plan: Plan) -> int | None:
    """That of the chosen checkpoint, or the one the training will end with; None of a network from elsewhere.

    A training that others took further is evaluated at the steps asked for, or the last before them that is kept.
    """
    if plan.recipe.evaluate.network:
        return None
    training = plan.artifact(TRAINING)
    checkpoint = chosen_checkpoint(plan.recipe, training) if plan.done(TRAINING) else None
    return checkpoint.step if checkpoint else plan.recipe.train.steps


def _about(plan: Plan) -> str:
    step = evaluated_step(plan)
    return "" if step is None else f"of the network at step {step}"


def _sampling(plan: Plan) -> dict[str, Any]:
    sample, evaluate = plan.recipe.sample, plan.recipe.evaluate
    parameters = _detectors(evaluate) | {
        "sample": sample.identity("guide") | {"guide": guide_identity(sample, plan.store)} | _solver(sample),
        "samples": evaluate.samples,
        "bank": bank_identity(evaluate.bank, plan.store) if evaluate.bank else None,
    }
    if evaluate.bank is None:
        parameters |= edits(plan)
    if evaluate.network is None:
        return parameters | {"step": evaluated_step(plan)}
    tokenizer = WeightsRef.parse(plan.recipe.tokenizer.source).identity()
    return parameters | {"network": network_identity(evaluate.network, plan.store), "tokenizer": tokenizer}


def _solver(sample: Sample) -> dict[str, int]:
    """Rises alone where the solver's code makes other samples: since 2 no step straddles an end of the guidance."""
    return {"dopri5": 2} if sample.method == "dopri5" and len(sample.pieces()) > 1 else {}


def _sampled_from(recipe: Recipe) -> tuple[Output, ...]:
    """The recipe's own training; or, for a network from elsewhere, the pictures and a bank."""
    if recipe.evaluate.network is None:
        return (TRAINING,)
    return (IMAGES,) if recipe.evaluate.bank else (IMAGES, BANK)


def _read(recipe: Recipe) -> tuple[Output, ...]:
    """What the recipe's own training was made of: snippets to sample from, and latents to decode."""
    own_bank = () if recipe.evaluate.bank else (BANK,)
    return own_bank if recipe.evaluate.network or recipe.evaluate.bank else (LATENTS, BANK)


def revision_of(parameters: dict[str, Any]) -> int:
    """Of the bank's rows that samples of these parameters are drawn from."""
    return parameters["bank"]["revision"] if parameters["bank"] else parameters.get("bank_revision", 1)


def _pins(context: Context) -> dict[str, int]:
    """The newest version of the bank with the rows that the fingerprint speaks of: more may have come since."""
    bank = open_bank(context.recipe.evaluate.bank or context.artifact("bank").uri, context.store)
    wanted = revision_of(context.parameters["samples"])
    if bank.content_revision == wanted:
        return {"bank": bank.version}
    versions = [change.version for change in bank.history() if change.revision == wanted]
    if not versions:
        raise StageError(f"the bank in {bank.artifact} was edited just now; run the evaluation again")
    return {"bank": versions[-1]}


def _statistics(plan: Plan) -> dict[str, Any]:
    evaluate = plan.recipe.evaluate
    reference = identity(evaluate.reference) if evaluate.reference else None
    return _detectors(evaluate) | {"samples": evaluate.samples, "reference": reference}


def _reported(plan: Plan) -> dict[str, Any]:
    """Besides the samples: what is named counts there, by its content."""
    evaluate = plan.recipe.evaluate
    return {"evaluate": evaluate.identity(*evaluate.names()), "step": evaluated_step(plan)}


STATISTICS = Output("statistics", VERSION, _statistics, inputs=lambda recipe: (IMAGES,))
SAMPLES = Output("samples", VERSION, _sampling, inputs=_sampled_from, reads=_read, defaults=UNEDITED)
REPORT = Output("report", REPORT_VERSION, _reported, inputs=lambda recipe: (SAMPLES, STATISTICS))
STAGE = Stage(
    name="evaluate",
    description="Samples from random snippets of the bank and measures them against the pictures.",
    unit="samples",
    outputs=(STATISTICS, SAMPLES, REPORT),
    driver="flows.stages.evaluate.driver",
    rows=lambda recipe, pictures: min(recipe.evaluate.samples, pictures),
    row_bytes=lambda recipe: recipe.picture_bytes,
    workers_import=("flows.stages.evaluate.worker",),
    pins=_pins,
    about=_about,
)
