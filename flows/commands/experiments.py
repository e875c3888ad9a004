"""``gmem compare-arms``, ``gmem sweep``, ``gmem adapt``, ``gmem results``: what changes of a recipe are worth, measured alike."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.options import Json, RecipeName, Set, StoreUri, overrides, print_json, resolved
from flows.console import new_table, show, tell
from storage.errors import Refused

if TYPE_CHECKING:
    from flows.experiments.results import Findings

ADAPTATION = "adaptation"
"""Kind of run in MLflow."""

Seeds = Annotated[
    list[int] | None, typer.Option("--seed", min=0, help="of the trainings, each with every arm; repeatable")
]
Steps = Annotated[
    list[int] | None, typer.Option("--step", min=1, help="training steps at which every arm is measured; repeatable")
]
Note = Annotated[str, typer.Option(help="what else a reader should know, such as what else the machine did")]
AtOnce = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", help="arms that share a cluster at a time, as jobs of its jobs API (cluster.address)"
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="folder for the plots, the findings as JSON and as a page; none: MLflow alone")
]


def compare_arms(
    recipe: RecipeName,
    experiment: Annotated[
        str,
        typer.Argument(metavar="EXPERIMENT", help="a shipped experiment's name, such as emoji-memory, or a YAML file"),
    ],
    at_once: AtOnce = 1,
    out: Out = None,
    note: Note = "",
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Trains and measures every arm of an experiment alike: distances over steps, and how much sooner each gets there."""
    _run(recipe, experiment, out, note, set, store, json, at_once=at_once)


def sweep(
    recipe: RecipeName = "emoji",
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B,…", help="values of a key of the recipe, such as sample.guidance=1,1.5,2; repeatable"
        ),
    ] = None,
    network: Annotated[
        str | None, typer.Option(metavar="URI", help="a checkpoint, training or imported network; none: the recipe's")
    ] = None,
    step: Steps = None,
    seed: Seeds = None,
    name: Annotated[str, typer.Option(help="of the sweep, in MLflow and in RESULTS.md")] = "sweep",
    register: Annotated[
        bool,
        typer.Option("--register", help="the best point's network and sampler become the version 'best' in MLflow"),
    ] = False,
    at_once: AtOnce = 1,
    out: Out = None,
    note: Note = "",
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Measures every combination of values of some keys of a recipe, such as its sampler's; trains only what it must."""
    if not grid:
        raise Refused("name what to vary: --grid KEY=A,B,…, such as --grid sample.steps=5,10,20")
    experiment: dict[str, Any] = {
        "name": name,
        "grid": {key: _values(key, values) for key, values in (_parted(each) for each in grid)},
        "common": {"evaluate": {"network": network}} if network else {},
        "steps": step or [],
        "seeds": seed or [],
    }
    _run(recipe, experiment, out, note, set, store, json, register, at_once)


def _parted(text: str) -> tuple[str, str]:
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise Refused(f"--grid {text[:80]!r} is not of the form KEY=A,B,…, such as sample.steps=5,10,20")
    return key.strip(), values


def _values(key: str, text: str) -> list[Any]:
    from flows.recipe.files import typed

    return [typed(key, value) for value in text.split(",")]


def _run(
    recipe: str,
    experiment: str | dict[str, Any],
    out: Path | None,
    note: str,
    pairs: list[str] | None,
    store: str | None,
    json: bool,
    register: bool = False,
    at_once: int = 1,
) -> None:
    from flows.commands.run import followed
    from flows.experiments import design
    from flows.experiments.flow import compare_arms as flow
    from flows.experiments.results import lines, table, write

    design.load(experiment)
    resolved(recipe, pairs, store)
    found: Findings = followed(
        flow, recipe, overrides(pairs, store), experiment=experiment, note=note, register_best=register, at_once=at_once
    )
    say = tell if json else show
    columns, rows = table(found)
    drawn = new_table(*columns, title=f"{found.design.name}: {found.metric}, by the split of the snippets")
    for row in rows:
        drawn.add_row(*row)
    say(drawn)
    for line in lines(found):
        say(line)
    say(f"MLflow: run {found.run_id}")
    if found.registered:
        say(f"registered as {found.registered}, alias best: {found.distances[0]} is least there")
    if out:
        say(f"page: {write([found], out / 'RESULTS.md', out)}")
    if json:
        print_json(asdict(found))


def adapt(
    recipe: RecipeName,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="pictures that the network has not seen: a folder, tars, Parquet")
    ],
    name: Annotated[str, typer.Option("--name", help="of the batch, in the bank")],
    network: Annotated[
        str | None, typer.Option(metavar="URI", help="a checkpoint, training or imported network; none: the recipe's")
    ] = None,
    count: Annotated[int, typer.Option(min=8, help="pictures that are measured, at most")] = 256,
    out: Annotated[
        Path, typer.Option(help="the picture that is drawn: true, generated and nearest training pictures")
    ] = Path("adaptation.png"),
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Adds new pictures to the bank, generates from them at once, and measures how near that comes to them."""
    from flows.engine.progress import Terminal
    from flows.experiments.adaptation import adapt as measure
    from flows.experiments.adaptation import lines
    from storage.store import Store
    from storage.tracking.access import flatten
    from storage.tracking.tracking import Tracking

    chosen = resolved(recipe, set, store)
    with Terminal("adapt") as progress:
        found = measure(chosen, source, name, network, count, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(found.figure)
    where = Store(chosen.store)
    tracking = Tracking.open(chosen.tracking.uri, where, chosen.name)
    parameters = {"source": source, "network": network, "count": count}
    with tracking.experiment_run(f"adaptation {name}", parameters, ADAPTATION) as run:
        run.metrics({key: float(value) for key, value in flatten(found.to_dict()).items()})
        run.artifact("adaptation.png", found.figure)
        run.artifact("adaptation.txt", "\n".join(lines(found)).encode())
    if json:
        print_json({"picture": str(out.absolute())} | found.to_dict())
        return
    for line in lines(found):
        show(line)
    show(f"picture: {out.absolute()}")


def results(
    recipe: RecipeName = "emoji",
    out: Annotated[Path, typer.Option(help="the page that is written")] = Path("RESULTS.md"),
    figures: Annotated[Path, typer.Option(help="folder for its plots")] = Path("docs/results"),
    set: Set = None,
    store: StoreUri = None,
) -> None:
    """Writes what a recipe's experiments found as one page, from MLflow: the newest run of each that came to its end."""
    from flows.engine.stage import Plan
    from flows.experiments.results import Adapted, Findings, write
    from storage.tracking.tracking import Tracking

    plan = Plan(resolved(recipe, set, store))
    tracking = Tracking.open(plan.recipe.tracking.uri, plan.store, plan.recipe.name)
    runs, adaptations = tracking.latest(), tracking.latest(ADAPTATION)
    if not runs and not adaptations:
        raise Refused(f"no experiment of recipe {plan.recipe.name} has come to its end; run 'gmem compare-arms' first")
    found = [Findings.from_json(tracking.read(run, "findings.json").decode()) for _, run in sorted(runs.items())]
    adapted = [
        Adapted(
            name,
            tracking.read(run, "adaptation.txt").decode().splitlines(),
            tracking.read(run, "adaptation.png"),
            run,
        )
        for name, run in sorted(adaptations.items())
    ]
    show(f"{len(found) + len(adapted)} experiments: {write(found, out, figures, adapted)}")
