"""MLflow's models of a training: a logged model for each checkpoint that is kept, and versions of a registered model."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from storage.store import Store

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.tracking import MlflowClient

    from storage.checkpoints import Checkpoint

LOSS, CHOSEN, REGISTERED, NOTE = "held_out_loss", "chosen", "mlflow.modelVersions", "mlflow.note.content"

Package = Callable[[Path, Path], None]


class Data(NamedTuple):
    """An artifact as MLflow's datasets go: it takes two of one name and digest for the same."""

    name: str
    digest: str

    @classmethod
    def of(cls, name: str, fingerprint: str, version: int | str | None) -> Data:
        return cls(name[:500], fingerprint if version is None else f"{fingerprint}@{version}")


def keep(mlflow: MlflowClient, run: str, model: str, there: Sequence[Checkpoint], store: Store, average: str) -> None:
    """As `Run.keep`; what earlier runs of the same training have made is taken into account."""
    kept = {each.weights(average).sha256: each for each in there}
    known = _logged(mlflow, [run, *(each.manifest.mlflow_run for each in there)])
    for sha256, checkpoint in kept.items():
        if not any(each.tags["sha256"] == sha256 for each in known):
            tags = told_of(checkpoint, store.relative(checkpoint.uri), sha256)
            logged = _begun(mlflow, run, model, checkpoint, tags)
            mlflow.finalize_logged_model(logged.model_id, "READY")
    for each in known:
        if each.tags["sha256"] not in kept and REGISTERED not in each.tags:
            mlflow.delete_logged_model(each.model_id)


def register(
    mlflow: MlflowClient,
    run: str,
    model: str,
    checkpoint: Checkpoint,
    store: Store,
    package: Package | None,
    copy_below: int,
    average: str,
    chosen: str,
) -> int:
    """As `Run.register`; raises what MLflow does."""
    from mlflow.exceptions import MlflowException

    from storage.checkpoints import export  # brings torch along, which logging does not need
    from storage.retention.checkpoints import pin

    about, weights, lies = checkpoint.manifest, checkpoint.weights(average), store.relative(checkpoint.uri)
    if weights.bytes >= copy_below:  # else the registry has a copy, whatever becomes of the checkpoint
        pin(checkpoint, "registered")
    try:
        mlflow.create_registered_model(model)
    except MlflowException as problem:
        if problem.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in mlflow.search_model_versions(f"name = '{model}'"):
        if (version.tags.get("sha256"), version.tags.get(CHOSEN, "")) == (weights.sha256, chosen):
            _set_best(mlflow, model, int(version.version), chosen)
            return int(version.version)
    tags = told_of(checkpoint, lies, weights.sha256) | ({CHOSEN: chosen} if chosen else {})
    logged = _unregistered(mlflow, [run, about.mlflow_run], tags) or _begun(mlflow, run, model, checkpoint, tags)
    with tempfile.TemporaryDirectory(prefix="gmem-") as scratch:
        folder, packaged = Path(scratch) / "network", Path(scratch) / "model"
        folder.mkdir()
        if weights.bytes < copy_below:
            export(checkpoint, str(folder), average)
        else:
            (folder / "manifest.json").write_text(about.model_dump_json(indent=2))
            (folder / "checkpoint.txt").write_text(lies)
        if package:
            package(folder, packaged)
        _fill(mlflow, logged, packaged if package else folder)
    where = logged.artifact_location
    made = mlflow.create_model_version(
        model, where, run_id=run, tags=tags, model_id=logged.model_id, description=_described(tags)
    )
    version_of = [{"name": model, "version": str(made.version)}]  # a server says so itself, a database does not
    mlflow.set_logged_model_tags(logged.model_id, {REGISTERED: json.dumps(version_of)})
    _set_best(mlflow, model, int(made.version), chosen)
    return int(made.version)


def judge(
    mlflow: MlflowClient, run: str, sha256: str, values: Mapping[str, float], step: int, pictures: Data | None
) -> None:
    """As `Run.judge`."""
    from mlflow.entities import LoggedModelInput, Metric

    experiment, now = mlflow.get_run(run).info.experiment_id, int(time.time() * 1000)
    for logged in mlflow.search_logged_models([experiment], f"tags.sha256 = '{sha256}'"):
        mlflow.log_inputs(run, models=[LoggedModelInput(logged.model_id)])
        known = {(each.key, each.step, each.value) for each in logged.metrics or []}
        new = {key: value for key, value in values.items() if (key, step, value) not in known}
        about = {"model_id": logged.model_id} | (_against(pictures) if pictures else {})
        mlflow.log_batch(run, [Metric(key, value, now, step, **about) for key, value in new.items()])
        if logged.source_run_id:
            mlflow.log_batch(logged.source_run_id, [Metric(key, value, now, step) for key, value in new.items()])


def told_of(checkpoint: Checkpoint, lies: str, sha256: str) -> dict[str, str]:
    """What the tags of a checkpoint's model say: of what it was made, and where it lies in its store."""
    about = checkpoint.manifest
    tags = {"step": str(about.step), "checkpoint": lies, "sha256": sha256}
    for role in ("latents", "bank", "patches"):
        if (made_of := getattr(about, role)) is not None:
            tags |= {role: made_of.uri, f"{role}_version": str(made_of.version)}
    tags |= {f"{role}_sha256": str(getattr(about, role).get("sha256", "")) for role in ("tokenizer", "encoder")}
    if about.held_out_loss is not None:
        tags |= {LOSS: f"{about.held_out_loss:.6g}"}
    return tags


def _described(tags: Mapping[str, str]) -> str:
    """The tags of a checkpoint's model as a person reads them, in markdown."""
    loss = f", held-out loss {tags[LOSS]}" if LOSS in tags else ""
    made_of = [f"`{tags[role]}`, version {tags[f'{role}_version']}" for role in ("latents", "bank") if role in tags]
    trained = f"\n\nTrained on {' and '.join(made_of)}." if made_of else ""
    return f"Averaged weights at step {tags['step']}{loss}: `--network {tags['checkpoint']}`{trained}"


def _logged(mlflow: MlflowClient, runs: Iterable[str]) -> list[LoggedModel]:
    """All logged models that runs of one experiment, of which the first is there, made of checkpoints."""
    sources = [run for run in dict.fromkeys(runs) if run]
    experiments = [mlflow.get_run(sources[0]).info.experiment_id]
    found = [mlflow.search_logged_models(experiments, f"source_run_id = '{source}'") for source in sources]
    return [each for some in found for each in some if "sha256" in each.tags]


def _unregistered(mlflow: MlflowClient, runs: Iterable[str], tags: Mapping[str, str]) -> LoggedModel | None:
    """The runs' logged model of these weights, where it is no version of a registered model yet."""
    there = [] if CHOSEN in tags else _logged(mlflow, runs)
    same = (each for each in there if each.tags["sha256"] == tags["sha256"] and REGISTERED not in each.tags)
    return next(same, None)


def _begun(mlflow: MlflowClient, run: str, model: str, checkpoint: Checkpoint, tags: dict[str, str]) -> LoggedModel:
    """A logged model of the run, with its loss on each of the tables that the checkpoint was trained on."""
    from mlflow.entities import LoggedModelOutput, Metric

    about, now = checkpoint.manifest, int(time.time() * 1000)
    experiment = mlflow.get_run(run).info.experiment_id
    name, told = f"{model}-step-{about.step}", tags | {NOTE: _described(tags)}
    logged = mlflow.create_logged_model(experiment, name, source_run_id=run, tags=told)
    mlflow.log_outputs(run, [LoggedModelOutput(logged.model_id, about.step)])
    if about.held_out_loss is not None:
        # MLflow tells values of one metric and step apart by their times alone.
        points = [
            Metric(LOSS, about.held_out_loss, now + place, about.step, logged.model_id, **data)
            for place, data in enumerate(map(_against, _trained_on(checkpoint)) or [{}])
        ]
        mlflow.log_batch(run, points)
    return logged


def _trained_on(checkpoint: Checkpoint) -> list[Data]:
    """The tables it was trained on, as the training's run names them."""
    about, found = checkpoint.manifest, []
    for made_of in (about.latents, about.bank, about.patches):
        if made_of is not None:
            kind, _, folder = made_of.uri.partition("/")
            name = folder.rpartition("-")[0]
            found.append(Data.of(f"{name}-{kind}", made_of.fingerprint, made_of.version))
    return found


def _against(data: Data) -> dict[str, str]:
    """Says of a metric what it was measured on."""
    return {"dataset_name": data.name, "dataset_digest": data.digest}


def _fill(mlflow: MlflowClient, logged: LoggedModel, folder: Path) -> None:
    """The files of a logged model, which is marked FAILED where they cannot be kept."""
    try:
        mlflow.log_model_artifacts(logged.model_id, str(folder))
    except Exception:
        mlflow.finalize_logged_model(logged.model_id, "FAILED")
        raise
    mlflow.finalize_logged_model(logged.model_id, "READY")


def _set_best(mlflow: MlflowClient, model: str, version: int, chosen: str) -> None:
    """The alias goes to what was chosen; else to the smallest held-out loss, unless somebody's choice has it."""
    if chosen:
        mlflow.set_registered_model_alias(model, "best", str(version))
        return
    there = mlflow.search_model_versions(f"name = '{model}'")
    measured = [each for each in there if LOSS in each.tags]
    if measured and not any(CHOSEN in each.tags for each in there):
        best = min(measured, key=lambda each: (float(each.tags[LOSS]), -int(each.version)))
        mlflow.set_registered_model_alias(model, "best", best.version)
