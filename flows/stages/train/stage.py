"""Stage train: latents, snippets and patch tokens into checkpoints of the network."""

from __future__ import annotations

from typing import Any

from flows.cluster.resources import one_worker_per_gpu
from flows.engine.errors import StageError
from flows.engine.stage import Output, Plan, Stage
from flows.models.resolve import network_identity
from flows.recipe.model import Recipe
from flows.stages.bank.stage import BANK, MEMORY, PATCHES, bank_revision, pinned
from flows.stages.latents.stage import LATENTS
from flows.stages.train.size import checkpoint_bytes
from storage.checkpoints import Checkpoint, all_checkpoints, best_of, latest
from storage.errors import StoreRefused
from storage.store import Artifact

VERSION = 1


def _parameters(plan: Plan) -> dict[str, Any]:
    """The number of steps is no part of a training's identity: more steps continue it. What it starts from is, by content."""
    start = plan.recipe.train.start_from
    return {
        "network": plan.recipe.network.identity(),
        "train": plan.recipe.train.identity() | ({"start_from": network_identity(start, plan.store)} if start else {}),
        "mirror": plan.recipe.data.mirror,
    }


def _reached(plan: Plan, artifact: Artifact) -> bool:
    last = latest(artifact)
    return artifact.complete and last is not None and last.step >= plan.recipe.train.steps


def chosen_checkpoint(recipe: Recipe, artifact: Artifact) -> Checkpoint | None:
    """What evaluation and sampling take of a training: the latest, or the one of the least held-out loss.

    Steps beyond `train.steps` are another run's wish. StoreError where nothing is left of a training's first steps.
    """
    there, steps = all_checkpoints(artifact), recipe.train.steps
    within = [each for each in there if each.step <= steps]
    if there and not within:
        kept = ", ".join(f"{each.step:,}" for each in there)
        raise StoreRefused(
            f"of the first {steps:,} steps of {artifact.uri} no checkpoint is kept (kept are {kept}); raise train.steps, "
            f"or train anew with train.checkpoint_at=[{steps}]"
        )
    return best_of(within) if recipe.evaluate.checkpoint == "best" else next(reversed(within), None)


def sampled_average(recipe: Recipe) -> float | None:
    """The decay of the average that is sampled; None: the first. StageError where the training keeps none such."""
    ema, kept = recipe.sample.ema, recipe.train.averages().values()
    if ema is None or ema == recipe.train.ema:
        return None
    if ema not in kept:
        raise StageError(
            f"sample.ema is {ema}, and of averages the training keeps those of decay {', '.join(map(str, kept))}; add it to "
            "train.emas, which trains anew"
        )
    return ema


def _about(plan: Plan) -> str:
    """How far it is, and that the bank has been edited since it began."""
    artifact = plan.artifact(TRAINING)
    last, manifest = latest(artifact), artifact.manifest()
    assert last is not None and manifest is not None, "it is there"
    asked = plan.recipe.train.steps
    said = f"with {last.step} steps" + (f", {asked} were asked for" if last.step > asked else "")
    return said + (f", on the bank's version {manifest.inputs['bank'].version}" if bank_revision(plan) > 1 else "")


TRAINING = Output(
    "training",
    VERSION,
    _parameters,
    inputs=lambda recipe: (LATENTS, BANK, *(output for output in (PATCHES, MEMORY) if output.wanted(recipe))),
    done=_reached,
)
STAGE = Stage(
    name="train",
    description="Trains the network on latents, snippets and patch tokens; goes on from the latest checkpoint.",
    unit="steps",
    outputs=(TRAINING,),
    driver="flows.stages.train.driver",
    rows=lambda recipe, pictures: recipe.train.steps,
    kept_bytes=checkpoint_bytes,
    reserves=one_worker_per_gpu,
    pins=lambda context: pinned(context, "training"),
    about=_about,
    continues=True,
)
