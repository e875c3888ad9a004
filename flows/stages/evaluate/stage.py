"""Stage evaluate: samples from random snippets of the bank, measured against the pictures."""

from __future__ import annotations

from typing import Any

from flows.engine.errors import StageError
from flows.engine.stage import Output, Plan, Stage
from flows.recipe.model import Evaluate, Recipe
from flows.stages import subject
from flows.stages.bank.stage import UNEDITED
from flows.stages.ingest.stage import IMAGES
from flows.stages.subject import step_of
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


def copy_detector(evaluate: Evaluate) -> dict[str, str]:
    """Source of the network that only tells copies, by the name its metrics bear; empty where none is named, or nothing
    is searched."""
    if not (evaluate.copy_detector and evaluate.memorisation):
        return {}
    name = WeightsRef.parse(evaluate.copy_detector).label
    if name in named_encoders(evaluate):
        raise StageError(
            f"evaluate.copy_detector and another encoder of evaluate bear the name {name}; name one of them"
        )
    return {name: evaluate.copy_detector}


def searched(evaluate: Evaluate) -> list[str]:
    """The detectors in whose features the nearest training pictures are searched, the most important first."""
    return [memorisation_detector(evaluate), *copy_detector(evaluate)]


def distance_metric(evaluate: Evaluate) -> str:
    """The Fréchet distance by which networks are ranked: in the features of that detector."""
    detector = memorisation_detector(evaluate)
    return "fid" if detector == INCEPTION else f"fd-{detector}"


def _detectors(evaluate: Evaluate) -> dict[str, Any]:
    return {
        "encoders": _identities(named_encoders(evaluate)),
        "inception": identity(evaluate.inception) if evaluate.inception else None,
    }


def _identities(sources: dict[str, str]) -> dict[str, str]:
    return {name: WeightsRef.parse(source).identity() for name, source in sources.items()}


def sources_known(evaluate: Evaluate) -> bool:
    """Whether each sample is of one picture of the recipe's: a bank from elsewhere has none, nor has what is mixed or drawn."""
    return evaluate.bank is None and evaluate.snippets == "bank"


def _drawn(recipe: Recipe) -> bool:
    return recipe.evaluate.snippets == "prior"


def _sampling(plan: Plan) -> dict[str, Any]:
    evaluate = plan.recipe.evaluate
    mixed = evaluate.snippets == "mixed"
    described = _detectors(evaluate) | subject.parameters(plan, _drawn(plan.recipe), mixed)
    described |= {"samples": evaluate.samples}
    return described if evaluate.snippets == "bank" else described | {"snippets": evaluate.snippets}


def _statistics(plan: Plan) -> dict[str, Any]:
    evaluate = plan.recipe.evaluate
    reference = identity(evaluate.reference) if evaluate.reference else None
    described = _detectors(evaluate) | {"samples": evaluate.samples, "reference": reference}
    copies = _identities(copy_detector(evaluate))
    return described | {"copies": copies} if copies else described


def _reported(plan: Plan) -> dict[str, Any]:
    """Besides the samples: what is named counts there, by its content."""
    evaluate = plan.recipe.evaluate
    return {"evaluate": evaluate.identity(*evaluate.names()), "step": step_of(plan)}


def _rows(recipe: Recipe, pictures: int) -> int:
    """Samples of the snippets of each split."""
    held_out = round(recipe.data.held_out * pictures)
    return sum(min(recipe.evaluate.samples, part) for part in (pictures - held_out, held_out))


STATISTICS = Output("statistics", VERSION, _statistics, inputs=lambda recipe: (IMAGES,))
SAMPLES = Output(
    "samples",
    VERSION,
    _sampling,
    inputs=lambda recipe: subject.made_of(recipe, _drawn(recipe)),
    reads=subject.read,
    defaults=UNEDITED,
)
REPORT = Output("report", REPORT_VERSION, _reported, inputs=lambda recipe: (SAMPLES, STATISTICS))
STAGE = Stage(
    name="evaluate",
    description="Samples from random snippets of the bank and measures them against the pictures.",
    unit="samples",
    outputs=(STATISTICS, SAMPLES, REPORT),
    driver="flows.stages.evaluate.driver",
    rows=_rows,
    row_bytes=lambda recipe: recipe.picture_bytes,
    workers_import=("flows.stages.evaluate.worker",),
    pins=lambda context: subject.pinned(context, "samples"),
    about=subject.about,
)
