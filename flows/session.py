"""How a stage runs as a Prefect flow: one session for a whole pipeline, retries with back-off, published artifacts."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from prefect import task
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.tasks import exponential_backoff
from pydantic import BaseModel

from flows.cancelling import ends_though_stranded
from flows.cluster.address import address_of, jobs_address
from flows.cluster.connection import connected, interruptible
from flows.engine.build import build, found
from flows.engine.context import Result
from flows.engine.progress import shown
from flows.engine.stage import Plan, Stage, require_wanted
from flows.figures import ABOUT
from flows.lineage import emit_made
from flows.recipe.files import load
from flows.recipe.form import overrides_of
from flows.recipe.model import Recipe
from flows.refusals import REFUSALS
from flows.remote.submission import submit
from storage.tracking.tracking import Tracking

DEPLOYED_WAIT = 6 * 3600.0
"""Seconds for which a deployment's run waits for another's lease on the same artifact, unless its recipe says how long."""


def _sentence_alone(record: logging.LogRecord) -> bool:
    """Leaves the traceback out of a run's log where the sentence says what a person must change."""
    problem = record.exc_info[1] if record.exc_info else None
    if isinstance(problem, REFUSALS):
        record.exc_info = record.exc_text = None
        record.msg, record.args = str(problem), ()
    return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_sentence_alone)


class Session:
    """What the stages of one pipeline run share: the plan, the parent run in MLflow, and Ray once somebody needs it."""

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        self.plan, self._stack = plan, stack
        self.tracking = Tracking.open(plan.recipe.tracking.uri, plan.store, experiment=plan.recipe.name)
        self.parent: str | None = None

    def join_cluster(self) -> None:
        self._stack.enter_context(connected(self.plan.recipe.cluster))


_current: ContextVar[Session | None] = ContextVar("session", default=None)


@contextmanager
def session(recipe: str, overrides: BaseModel | dict[str, Any] | None) -> Iterator[Session]:
    """The pipeline's session, or a new one for a stage that runs alone."""
    if running := _current.get():
        yield running
        return
    with ExitStack() as stack:
        new = Session(planned(recipe, overrides_of(overrides)), stack)
        token = _current.set(new)
        stack.callback(_current.reset, token)
        if not address_of(new.plan.recipe.cluster):
            stack.enter_context(ends_though_stranded())
        yield new


def planned(recipe: str, overrides: dict[str, Any]) -> Plan:
    """A recipe, with nested overrides, on its store, as this flow's run goes about it."""
    return Plan(_patient(load(recipe, overrides)))


def _patient(recipe: Recipe) -> Recipe:
    """A person at a terminal is told at once that somebody else is at work; a schedule's run waits for its turn."""
    if not deployment.id or "lease_wait" in recipe.tracking.model_fields_set:
        return recipe
    return recipe.model_copy(update={"tracking": recipe.tracking.model_copy(update={"lease_wait": DEPLOYED_WAIT})})


def prefect_tags() -> dict[str, str]:
    """What a run in MLflow says of this run in Prefect."""
    return {"prefect.flow_run": str(flow_run.id), "prefect.url": str(flow_run.ui_url or "")}


def run(stage: Stage, recipe: str, overrides: BaseModel | dict[str, Any] | None) -> Result:
    """The body of every stage's flow."""
    with session(recipe, overrides) as current:
        require_wanted(stage, current.plan.recipe)
        result = attempted(stage, current, stage.name)
        publish(result, current.tracking)
        return result


def attempted(stage: Stage, current: Session, name: str) -> Result:
    """A stage as a task of this name, within the recipe's limit of time."""
    minutes = getattr(current.plan.recipe.cluster, stage.name).minutes
    limit = None if minutes is None else 60 * minutes
    result = attempt.with_options(task_run_name=name, timeout_seconds=limit)(stage, current)
    emit_made(result, stage, current.plan, current.tracking.page(result.run_id))
    return result


def _worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    """Bad input stays bad; a lost node or an unreachable server may come back."""
    try:
        state.result()
    except REFUSALS:
        return False
    except Exception:  # noqa: BLE001 - whatever it was
        return True
    return False


@task(
    retries=2,
    retry_delay_seconds=exponential_backoff(5),
    retry_condition_fn=_worth_retrying,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def attempt(stage: Stage, current: Session) -> Result:
    """One attempt at a stage, in this process or as a job on a cluster. A further one goes on from what is committed."""
    plan = current.plan
    if not plan.missing(stage):
        there = found(stage, plan, current.tracking, current.parent)
        get_run_logger().info(
            "%s is there already: %d %s%s (MLflow run %s)",
            stage.name,
            there.rows,
            there.unit,
            f", {there.about}" if there.about else "",
            there.run_id,
        )
        return there
    with shown(stage.name) as progress:
        if address := jobs_address(plan.recipe.cluster):
            return submit(stage, plan, current.tracking, current.parent, address, progress)
        current.join_cluster()
        with interruptible():
            return build(stage, plan, current.tracking, current.parent, progress)


def publish(result: Result, tracking: Tracking) -> None:
    """What the stage made, as a table and its pictures in Prefect."""
    row = {
        "rows": result.rows,
        "unit": result.unit,
        "seconds": round(result.seconds, 1),
        "made": "now" if result.fresh else "earlier",
        "about": result.about,
    }
    table = [
        row | {"artifact": kind, "uri": uri, "version": result.versions.get(kind)}
        for kind, uri in result.artifacts.items()
    ]
    about = f"What stage {result.stage} made (MLflow: {_linked(tracking, result.run_id)})"
    create_table_artifact(table, key=f"{result.stage}-artifacts", description=about)
    if result.metrics:
        create_markdown_artifact(_measured(result), key=f"{result.stage}-measured", description="What was measured")
    _show_pictures(result)


def summarise(results: list[Result], current: Session) -> None:
    """The pipeline's run told on its own page: stages, times, what was measured, pictures, and where MLflow has it."""
    rows = "".join(
        f"| {r.stage} | {r.rows:,} {r.unit} | {f'{r.seconds:.0f} s' if r.fresh else 'there already'} | {r.about} |\n"
        for r in results
    )
    table = f"| stage | | time | |\n|---|---:|---:|---|\n{rows}"
    where = f"MLflow: {_linked(current.tracking, current.parent)}" if current.parent else ""
    measured = [_measured(result) for result in results if result.metrics]
    told = "\n\n".join([f"Store: `{results[0].store}`", where, table, *measured])
    create_markdown_artifact(told, key="summary", description="Stages, times, and what was measured")
    _show_pictures(results[-1])


def _linked(tracking: Tracking, run_id: str | None) -> str:
    """A run's page, or the command that shows it, in markdown."""
    page = tracking.page(run_id)
    return page if page.startswith("http") else f"`{page}`"


def _measured(result: Result) -> str:
    lines = result.details.get("lines") or [f"{name}: {value:.4g}" for name, value in result.metrics.items()]
    return "\n".join(f"- {line}" for line in lines)


def _show_pictures(result: Result) -> None:
    for title, picture in result.pictures.items():
        show_picture(_read(picture), f"{result.stage}-{title}", title)


def show_picture(png: bytes, key: str, title: str) -> None:
    """The picture itself as a data URL, so that it shows wherever the server runs."""
    said = ABOUT.get(title.partition("-")[0], title)
    inline = "data:image/png;base64," + base64.b64encode(png).decode()
    create_image_artifact(image_url=inline, key=key, description=said)


def _read(uri: str) -> bytes:
    import fsspec

    with fsspec.open(uri, "rb") as stream:
        content: bytes = stream.read()
        return content
