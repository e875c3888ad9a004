"""``gmem run``, ``stage``, ``plan``, ``status``: the chain, and what of it is there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.options import Json, Profile, RecipeName, Set, StoreUri, overrides, print_json, resolved
from flows.commands.units import age, size
from flows.console import new_table, show, tell

if TYPE_CHECKING:
    from prefect import State

    from flows.engine.context import Result
    from flows.engine.stage import Output, Plan, Stage
    from flows.recipe.model import Recipe


def run(
    recipe: RecipeName = "emoji", set: Set = None, store: StoreUri = None, profile: Profile = False, json: Json = False
) -> None:
    """Runs the whole chain: ingest, latents, bank, train, evaluate. Computes only what is not there yet."""
    start = time.monotonic()
    chosen = overrides(set, store, profile)
    plan = _plan(resolved(recipe, set, store))
    if not any(report.name == plan.recipe.name and report.complete for report in plan.store.artifacts("report")):
        from flows.warmup import begin  # Ray, which takes its time, and is not needed to find that all is there

        begin(
            plan.recipe.cluster, _stages(plan.recipe)
        )  # there surely is work to do: no need to know first what all the stages make
    some_missing = any(plan.missing(stage) for stage in _stages(plan.recipe))
    results = _computed(recipe, chosen, plan) if some_missing else _found(plan, chosen)
    summary(results, time.monotonic() - start, _mlflow(plan), tell if json else show)
    if json:
        print_json({"seconds": time.monotonic() - start, "stages": [asdict(r) for r in results]})


def _plan(recipe: Recipe) -> Plan:
    """The recipe on its store; what cannot be written or read is refused before servers are started."""
    from flows.engine.stage import Plan

    plan = Plan(recipe)
    plan.store.require_writable()
    assert plan.listing is not None
    return plan


def _stages(recipe: Recipe) -> tuple[Stage, ...]:
    from flows.stages.chain import stages_of

    return stages_of(recipe)


def _computed(recipe: str, chosen: dict[str, Any], plan: Plan) -> list[Result]:
    """What the flow returns."""
    from flows.warmup import begin, wait

    begin(plan.recipe.cluster, _stages(plan.recipe))
    from flows.pipeline import pipeline

    wait()
    return followed(pipeline, recipe, chosen)


def followed(flow: Any, recipe: str, chosen: dict[str, Any], **parameters: Any) -> Any:
    """What a flow of a recipe returns; says where Prefect shows its run."""
    from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

    from flows.recipe.form import Overrides

    state: State[Any] = flow(recipe, overrides=Overrides(**chosen), **parameters, return_state=True)
    start, address = "", PREFECT_UI_URL.value()
    if not PREFECT_API_URL.value():  # its own server ended with the run, and any other shows what it wrote
        start, address = "'prefect server start', then ", "http://127.0.0.1:4200"
    tell(f"Prefect: {start}{address}/runs/flow-run/{state.state_details.flow_run_id}")
    return state.result()


def _found(plan: Plan, chosen: dict[str, Any]) -> list[Result]:
    """Everything is there: no server is needed to say so, only a run in MLflow that links to those which made it."""
    from flows.engine.build import found
    from storage.tracking.tracking import Tracking

    tracking = Tracking.open(plan.recipe.tracking.uri, plan.store, plan.recipe.name)
    with tracking.pipeline_run(plan.recipe.model_dump(mode="json"), chosen) as parent:
        return [found(stage, plan, tracking, parent) for stage in _stages(plan.recipe)]


def stage(
    name: Annotated[
        str, typer.Argument(help="ingest, latents, bank, prior, train, sample or evaluate", show_default=False)
    ],
    recipe: RecipeName = "emoji",
    set: Set = None,
    store: StoreUri = None,
    profile: Profile = False,
    json: Json = False,
) -> None:
    """Runs one stage of the chain; the stages before it must be there."""
    from flows.engine.stage import check_inputs, require_wanted, result_of
    from flows.stages.chain import stage_named

    start = time.monotonic()
    wanted = stage_named(name)
    chosen = overrides(set, store, profile)
    plan = _plan(resolved(recipe, set, store))
    require_wanted(wanted, plan.recipe)
    if plan.missing(wanted):
        check_inputs(wanted, plan)
        from flows.warmup import begin, wait

        begin(plan.recipe.cluster, [wanted])
        from flows.pipeline import FLOWS

        wait()
        result = followed(FLOWS[name], recipe, chosen)
    else:  # no server is needed to say so
        result = result_of(wanted, plan, False, 0.0)
    summary([result], time.monotonic() - start, _mlflow(plan), tell if json else show)
    if json:
        print_json(asdict(result))


def _mlflow(plan: Plan) -> str:
    from storage.tracking.tracking import Tracking

    return Tracking.open(plan.recipe.tracking.uri, plan.store, plan.recipe.name).command


def summary(results: list[Result], seconds: float, mlflow_command: str, say: Callable[[Any], None]) -> None:
    """The table a run ends with, what it made, and what to look at next."""
    table = new_table("stage", "time", "rows", "rate", "", title=f"{seconds:.0f} s in all")
    for r in results:
        rate = f"{r.rate:,.1f} {r.unit}/s" if r.fresh else "-"
        table.add_row(r.stage, f"{r.seconds:.1f} s" if r.fresh else "already there", f"{r.rows:,}", rate, r.about)
    say(table)
    say(f"artifacts below {results[0].store}:")
    for r in results:
        for kind, uri in r.artifacts.items():
            version = f", version {r.versions[kind]}" if kind in r.versions else ""
            say(f"  {'/'.join(uri.split('/')[-2:])}{version}")
    for line in results[-1].details.get("lines", []):
        say(line)
    for title, uri in results[-1].pictures.items():
        say(f"{title}: {uri}")
    say(f"MLflow: {mlflow_command}")


def plan(recipe: RecipeName = "emoji", set: Set = None, store: StoreUri = None, json: Json = False) -> None:
    """Says which stages would run, which are there already, why, and about how many rows, bytes and minutes."""
    from flows.engine.estimate import estimates
    from flows.engine.stage import Plan

    planned = Plan(resolved(recipe, set, store))
    rows = estimates(_stages(planned.recipe), planned)
    if json:
        print_json([asdict(row) for row in rows])
        return
    table = new_table("stage", "would", "why", "rows", "bytes", "minutes")
    for row in rows:
        minutes = f"{row.minutes:.1f}" if row.runs and row.minutes is not None else ""
        table.add_row(row.stage, "run" if row.runs else "-", row.why, f"{row.rows:,}", size(row.bytes), minutes)
    show(table)


def status(recipe: RecipeName = "emoji", set: Set = None, store: StoreUri = None, json: Json = False) -> None:
    """Every stage of a recipe: state, rows, version, age, bytes."""
    rows = _states(resolved(recipe, set, store))
    if json:
        print_json(rows)
        return
    table = new_table("stage", "artifact", "state", "rows", "version", "age", "bytes")
    for row in rows:
        aged = "" if row["age"] is None else age(row["age"])
        table.add_row(
            row["stage"],
            row["kind"],
            row["state"],
            f"{row['rows']:,}",
            str(row["version"] or ""),
            aged,
            size(row["bytes"]),
        )
    show(table)


def _states(recipe: Recipe) -> list[dict[str, Any]]:
    """Every artifact of a recipe: stage, kind, state, rows, version, age in seconds, bytes, URI, holder."""
    from flows.engine.stage import Plan

    plan = Plan(recipe)
    return [_state(stage, output, plan) for stage in _stages(recipe) for output in stage.wanted(recipe)]


def _state(stage: Stage, output: Output, plan: Plan) -> dict[str, Any]:
    artifact = plan.artifact(output)
    summary, manifest = artifact.summary(), artifact.manifest()
    return {
        "stage": stage.name,
        "kind": output.kind,
        "state": "complete" if plan.done(output) else summary["state"],
        "rows": summary["counts"].get("rows", 0),
        "version": manifest.details.get("version") if manifest else None,
        "age": summary["age_s"],
        "bytes": summary["bytes"],
        "uri": artifact.uri,
        "holder": summary["holder"],
    }
