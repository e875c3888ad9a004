"""The best point of an experiment as a registered model: its network, and how samples of it are drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence

from flows.engine.stage import Plan
from flows.experiments.curves import Point, leader
from flows.models.resolve import average_of, open_guide, open_network
from flows.models.served import save
from flows.stages.train.stage import TRAINING
from storage.checkpoints import Checkpoint, at
from storage.tracking.tracking import Run, TrackingError

Measured = tuple[Point, Plan]
"""A point, and the plan by which it was measured."""


def register(measured: Sequence[Measured], key: str, name: str, run: Run) -> str:
    """Makes the best point the registered model's version with the alias `best`; its URI in MLflow.

    The best is the least distance of the arm that is best in the mean over its seeds.

    Args:
        measured: all points of the experiment.
        key: the distance, by `split/kind/metric`.
        name: of the experiment.
        run: the experiment's.

    Raises:
        TrackingError: MLflow did not take it.
    """
    point, plan = best_of(measured, key)
    recipe, checkpoint = plan.recipe, _network(point, plan)
    if guide := open_guide(recipe.sample, checkpoint, plan.store):  # an earlier step is found from its training alone
        recipe = recipe.model_copy(
            update={"sample": recipe.sample.model_copy(update={"guide": plan.store.relative(guide.uri)})}
        )
    chosen = {"experiment": name, "arm": point.arm, key: point.metrics[key], "sample": recipe.sample.model_dump()}
    model = f"gmem-{recipe.name}"
    version = run.register(
        model,
        checkpoint,
        plan.store,
        lambda network, target: save(network, target, recipe),
        average=average_of(checkpoint, recipe),
        chosen=json.dumps(chosen, sort_keys=True),
    )
    if version is None:
        raise TrackingError(f"MLflow did not take {checkpoint.uri} as a version of {model}; run the experiment again")
    return f"models:/{model}/{version}"


def best_of(measured: Sequence[Measured], key: str) -> Measured:
    """The least distance of the leading arm, and of equal ones the earliest step."""
    first = leader([point for point, _ in measured], key)
    candidates = [each for each in measured if each[0].arm == first]
    return min(candidates, key=lambda each: (each[0].metrics[key], each[0].step))


def _network(point: Point, plan: Plan) -> Checkpoint:
    network = plan.recipe.evaluate.network
    return open_network(network, plan.store) if network else at(plan.artifact(TRAINING), point.step)
