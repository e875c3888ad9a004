"""What is sampled from: the network and the bank that a recipe's `evaluate` names, for evaluation and sampling alike."""

from __future__ import annotations

from typing import Any

from flows.engine.context import Context
from flows.engine.errors import StageError
from flows.engine.stage import Output, Plan
from flows.models.resolve import bank_identity, guide_identity, network_identity, open_bank
from flows.recipe.model import Recipe, Sample
from flows.stages.bank.stage import BANK, MEMORY, edits
from flows.stages.ingest.stage import IMAGES
from flows.stages.latents.stage import LATENTS
from flows.stages.prior.stage import PRIOR
from flows.stages.train.stage import TRAINING, chosen_checkpoint, sampled_average
from gmem.weights import WeightsRef
from storage.checkpoints import latest


def step_of(plan: Plan) -> int | None:
    """That of the chosen checkpoint, or the one the training will end with; None of a network from elsewhere.

    A training that others took further is sampled at the steps asked for, or the last before them that is kept.
    """
    if plan.recipe.evaluate.network:
        return None
    training = plan.artifact(TRAINING)
    checkpoint = chosen_checkpoint(plan.recipe, training) if plan.done(TRAINING) else None
    return checkpoint.step if checkpoint else plan.recipe.train.steps


def about(plan: Plan) -> str:
    """Of what is there: by which network."""
    step = step_of(plan)
    return "" if step is None else f"of the network at step {step}"


def parameters(plan: Plan, drawn: bool, mixed: bool) -> dict[str, Any]:
    """What decides samples besides which snippets they are of: `drawn` are those of the recipe's prior, `mixed` are those
    of near rows."""
    sample, evaluate = plan.recipe.sample, plan.recipe.evaluate
    described: dict[str, Any] = {
        "sample": sample.identity("guide", "ema")
        | {"guide": guide_identity(sample, plan.store)}
        | _solver(sample)
        | _average(plan.recipe),
        "bank": bank_identity(evaluate.bank, plan.store) if evaluate.bank else None,
    }
    if evaluate.bank is None:
        described |= edits(plan) | (_mixing(plan.recipe) if mixed else {})
    if drawn:
        described["prior_step"] = _prior_step(plan)
    if evaluate.network is None:
        return described | {"step": step_of(plan)}
    tokenizer = WeightsRef.parse(plan.recipe.tokenizer.source).identity()
    return described | {"network": network_identity(evaluate.network, plan.store, plan.recipe), "tokenizer": tokenizer}


def _average(recipe: Recipe) -> dict[str, float]:
    """Which of the training's averages is sampled, besides the first; that of another network counts by its hash."""
    decay = None if recipe.evaluate.network else sampled_average(recipe)
    return {} if decay is None else {"ema": decay}


def _solver(sample: Sample) -> dict[str, int]:
    """Rises alone where the solver's code makes other samples: since 2 no step straddles an end of the guidance."""
    return {"dopri5": 2} if sample.method == "dopri5" and len(sample.pieces()) > 1 else {}


def _mixing(recipe: Recipe) -> dict[str, int]:
    """Rises alone where mixtures are of other snippets: since 2 of those that a recipe keeps."""
    return {"mixing": 2} if MEMORY.wanted(recipe) else {}


def _prior_step(plan: Plan) -> int:
    """Of the prior that is there, or that it will end with."""
    last = latest(plan.artifact(PRIOR)) if plan.done(PRIOR) else None
    return last.step if last else plan.recipe.prior.steps


def made_of(recipe: Recipe, drawn: bool) -> tuple[Output, ...]:
    """The recipe's own training, or for a network from elsewhere the pictures and a bank; and the prior."""
    prior = (PRIOR,) if drawn else ()
    if recipe.evaluate.network is None:
        return (TRAINING, *prior)
    return (IMAGES, *_own_bank(recipe), *prior)


def _own_bank(recipe: Recipe) -> tuple[Output, ...]:
    """The recipe's, and what is kept of it; nothing where another is named."""
    if recipe.evaluate.bank:
        return ()
    return (BANK, MEMORY) if MEMORY.wanted(recipe) else (BANK,)


def read(recipe: Recipe) -> tuple[Output, ...]:
    """What the recipe's own training was made of: snippets to sample from, and latents to decode."""
    bank = _own_bank(recipe)
    return bank if recipe.evaluate.network or recipe.evaluate.bank else (LATENTS, *bank)


def pinned(context: Context, kind: str) -> dict[str, int]:
    """The newest version of the bank with the rows that the fingerprint of this kind speaks of: more may have come since."""
    bank = open_bank(context.recipe.evaluate.bank or context.artifact("bank").uri, context.store)
    wanted = _revision(context.parameters[kind])
    if bank.content_revision == wanted:
        return {"bank": bank.version}
    versions = [change.version for change in bank.history() if change.revision == wanted]
    if not versions:
        raise StageError(f"the bank in {bank.artifact} was edited just now; run the stage again")
    return {"bank": versions[-1]}


def _revision(parameters: dict[str, Any]) -> int:
    """Of the bank's rows that samples of these parameters are drawn from."""
    return parameters["bank"]["revision"] if parameters["bank"] else parameters.get("bank_revision", 1)
