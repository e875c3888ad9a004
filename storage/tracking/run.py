"""One MLflow run, written to without waiting for MLflow.

What is logged goes into a lane, files into another, and from there to MLflow. A run is known by (tracking URI, run id):
any process can write to it.
"""

from __future__ import annotations

import io
import json
import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from storage.addresses import without_userinfo
from storage.tracking import models
from storage.tracking.access import client, cut, flatten, patiently, problems
from storage.tracking.lane import Lane, Point
from storage.tracking.models import Data, Package

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from storage.checkpoints import Checkpoint
    from storage.store import Store

log = logging.getLogger(__name__)


class Run:
    """A run that exists. Every method but `register`, `flush` and `close` returns at once, and none ever fails.

    Close it (or use it in a `with` block) before a process ends, or its last second may be lost.
    """

    def __init__(self, uri: str, id: str) -> None:
        self.uri, self.id = uri, id
        self._entries = Lane(uri, id, "entries")
        self._files = Lane(uri, id, "files")  # apart: where these cannot be kept, numbers still arrive
        self._stop_sampling = threading.Event()

    def __reduce__(self) -> tuple[type[Run], tuple[str, str]]:
        return Run, (self.uri, self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Numbers, of this step of training if there are steps."""
        now = int(time.time() * 1000)
        self._entries.put(*(Point(key, float(value), now, step or 0) for key, value in values.items()))

    def add(self, values: Mapping[str, float]) -> None:
        """Adds to metrics that count over all attempts of a run which is continued, such as hours."""
        self._entries.put(lambda mlflow: _add(mlflow, self.id, values))

    def params(self, values: Mapping[str, Any]) -> None:
        """Parameters, nested ones under dotted names. One that was logged before with another value becomes a tag."""
        if flat := flatten(dict(values)):
            self._entries.put(lambda mlflow: _log_params(mlflow, self.id, flat))

    def tags(self, values: Mapping[str, str]) -> None:
        self._entries.put(lambda mlflow: _log_tags(mlflow, self.id, values))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table that MLflow shows and compares; rows are added when it is there already."""
        columns = {key: [row.get(key) for row in rows] for key in (rows[0] if rows else ())}
        if columns:
            self._files.put(lambda mlflow: mlflow.log_table(self.id, columns, f"{name}.json"))

    def artifact(self, name: str, data: bytes) -> None:
        """A file of this content; `name` may have folders."""
        self._files.put(lambda mlflow: _log_bytes(mlflow, self.id, name, data))

    def image(self, key: str, data: bytes, step: int) -> None:
        """A PNG of this step, which MLflow shows with a slider over steps and beside those of other runs."""
        self._files.put(lambda mlflow: _log_image(mlflow, self.id, key, data, step))

    def dataset(
        self, name: str, uri: str, fingerprint: str, version: int | None, context: str, rows: int | None = None
    ) -> None:
        """An input: the artifact at `uri`, relative to its store, a table in this version, used for `context` (training,
        evaluation, …)."""
        data, source = Data.of(name, fingerprint, version), json.dumps({"uri": uri, "version": version})
        self._entries.put(lambda mlflow: _log_dataset(mlflow, self.id, data, source, context, rows))

    def system_metrics(self, every: float = 10.0, node: str = "") -> None:
        """Measures this machine's processors, memory, disk, network and GPUs until the run is closed."""
        threading.Thread(target=self._sample, args=(every, node), name="system-metrics", daemon=True).start()

    def register(
        self,
        model: str,
        checkpoint: Checkpoint,
        store: Store,
        package: Package | None = None,
        copy_below: int = 256 << 20,
        average: str = "ema",
        chosen: str = "",
    ) -> int | None:
        """Makes the checkpoint's averaged weights a version of a registered model, linked to latents and bank.

        It is a logged model of the run too, as `keep` makes it. Weights smaller than `copy_below` bytes are copied; larger
        ones stay where they are, and the version says where, with their hash. The same weights are registered once, or
        once for each way in which they were `chosen`. The newest that was chosen has the alias `best`; while none was,
        that with the smallest held-out loss. None (and a warning) on failure.

        Args:
            store: which checkpoint is named relative to, so that the version stays true when it is moved.
            package: makes what MLflow loads of the folder with weights and manifest, in a folder that is not there yet.
            average: the group of tensors of the average that is registered.
            chosen: by what somebody chose it, and how it is to be sampled; empty where nobody did.
        """
        try:
            mlflow = client(self.uri)
            return patiently(
                lambda: models.register(
                    mlflow, self.id, model, checkpoint, store, package, copy_below, average, chosen
                ),
                "registering a model",
            )
        except problems() as problem:
            reason = without_userinfo(str(problem))
            log.warning("The weights of %s were not registered in MLflow: %s", checkpoint.uri, reason)
            return None

    def keep(self, model: str, there: Sequence[Checkpoint], store: Store, average: str = "ema") -> None:
        """Makes each of a training's checkpoints a logged model of the run, unless it is one already; its weights stay
        where they are. Those of checkpoints that were superseded go, unless they were registered.

        Args:
            model: the registered model of which one will be a version.
            there: all checkpoints that are kept.
            store: which they are named relative to.
            average: the group of tensors by whose hash they are known.
        """
        self._entries.put(lambda mlflow: models.keep(mlflow, self.id, model, there, store, average))

    def judge(self, sha256: str, values: Mapping[str, float], step: int, pictures: Data | None = None) -> None:
        """What this run measured of weights, beside these pictures, becomes metrics of the logged models that hold them,
        and of the runs those are of."""
        self._entries.put(lambda mlflow: models.judge(mlflow, self.id, sha256, values, step, pictures))

    def flush(self, timeout: float = 60.0) -> bool:
        """Waits until everything is with MLflow; False if it is not yet."""
        until = time.monotonic() + timeout
        return self._entries.flush(timeout) & self._files.flush(until - time.monotonic())

    def close(self, timeout: float = 60.0) -> None:
        """Sends the rest; what MLflow does not take within `timeout` seconds is given up with a warning."""
        self._stop_sampling.set()
        until = time.monotonic() + timeout
        self._entries.close(timeout)
        self._files.close(max(0.0, until - time.monotonic()))

    def _sample(self, every: float, node: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(self.id, tracking_uri=self.uri)
        prefix = f"system/{node}/" if node else "system/"
        began = self._start_time()
        while not self._stop_sampling.wait(every):
            try:
                monitor.collect_metrics()
                values = {f"{prefix}{key}": value for key, value in monitor.aggregate_metrics().items()}
                for each in monitor.monitors:
                    each.clear_metrics()
            except Exception as problem:  # noqa: BLE001 - drivers of devices fail in many ways
                log.warning("System metrics cannot be measured: %s", problem)
                return
            self.metrics(values, step=int(time.time() - began))  # seconds, so that a resumed run goes on

    def _start_time(self) -> float:
        try:
            return float(client(self.uri).get_run(self.id).info.start_time) / 1000
        except problems():
            return time.time()


def _log_params(mlflow: MlflowClient, run: str, values: dict[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    known = mlflow.get_run(run).data.params
    new = [Param(key, value) for key, value in values.items() if key not in known]
    changed = [RunTag(f"changed.{key}", value) for key, value in values.items() if known.get(key, value) != value]
    for start in range(0, len(new), 100):  # MLflow's limit
        mlflow.log_batch(run, params=new[start : start + 100], synchronous=True)
    mlflow.log_batch(run, tags=changed[:100], synchronous=True)


def _add(mlflow: MlflowClient, run: str, values: Mapping[str, float]) -> None:
    known = mlflow.get_run(run).data.metrics
    for key, value in values.items():
        mlflow.log_metric(run, key, known.get(key, 0.0) + value)


def _log_tags(mlflow: MlflowClient, run: str, values: Mapping[str, str]) -> None:
    for key, value in values.items():
        mlflow.set_tag(run, key, cut(without_userinfo(str(value)), 8000))


@contextmanager
def _file(name: str, data: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gmem-") as folder:
        path = Path(folder) / Path(name).name
        path.write_bytes(data)
        yield path


def _log_bytes(mlflow: MlflowClient, run: str, name: str, data: bytes) -> None:
    with _file(name, data) as path:
        mlflow.log_artifact(run, str(path), str(Path(name).parent) if "/" in name else None)


def _log_image(mlflow: MlflowClient, run: str, key: str, data: bytes, step: int) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        mlflow.log_image(run, image.convert("RGB"), key=key, step=step, synchronous=True)


def _log_dataset(mlflow: MlflowClient, run: str, data: Data, source: str, context: str, rows: int | None) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = json.dumps({"num_rows": rows}) if rows is not None else None
    dataset = Dataset(name=data.name, digest=data.digest, source_type="lance", source=source, profile=profile)
    tag = InputTag(key="mlflow.data.context", value=context)
    mlflow.log_inputs(run, [DatasetInput(dataset=dataset, tags=[tag])])
