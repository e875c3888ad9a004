"""Where the work of a recipe runs, and where it is recorded. Everything here is operational."""

from __future__ import annotations

from pydantic import field_validator

from flows.recipe.section import Section, operational


class Reserved(Section):
    """What each actor, task or training worker of one stage reserves, and how long an attempt at it may take."""

    cpus: float | None = operational(
        None, "CPUs; none: cluster.actor_cpus (ingest and training: 1; training with GPUs: its share, less one)", gt=0
    )
    gpus: float | None = operational(
        None, "GPUs; none: cluster.actor_gpus (ingest: 0; training: 1 where there are any)", ge=0
    )
    memory_gib: float = operational(0, "memory; 0: not counted", ge=0)
    labels: dict[str, str] = operational({}, "labels its node must have, such as {ray.io/accelerator-type: H100}")
    minutes: float | None = operational(
        None, "an attempt that takes longer is ended, and another goes on from what is committed; none: no limit", gt=0
    )


class Cluster(Section):
    """Where the jobs run. Everything here is operational."""

    address: str | None = operational(
        None,
        "a Ray cluster: http(s)://HOST:8265 (its jobs API), or HOST:PORT or auto to join it; none: embedded, or RAY_ADDRESS",
    )
    cpus: int | None = operational(None, "CPUs of the embedded Ray; none: all", ge=1)
    share: float = operational(
        1.0, "share of the CPUs and GPUs there are that a run counts on, and leaves the rest to others", gt=0, le=1
    )
    actors: int | None = operational(None, "encoder and sampler actors; none: one a GPU, or one a two CPUs", ge=1)
    actor_cpus: float = operational(1, "CPUs reserved by an encoder or sampler", gt=0)
    actor_gpus: float | None = operational(
        None, "GPUs reserved by an encoder or sampler; none: 1 where there are any", ge=0
    )
    train_workers: int | None = operational(None, "training workers; none: one a GPU, or one", ge=1)
    train_workers_min: int | None = operational(
        None, "go on with as few as these when nodes are lost, and grow again; none: wait for all", ge=1
    )
    train_failures: int = operational(3, "workers or nodes that may be lost in one training", ge=0)
    cache: str = operational(
        "~/.cache/gmem",
        "folder on each node's disk for what its processes share: copies from an object store, and data held in memory",
    )
    object_store_gib: float | None = operational(
        None, "memory of the embedded Ray's object store; none: a share of what is free here", ge=0.1
    )
    profile: bool = operational(
        False, "leave in MLflow where the time goes: of Ray's tasks, and of a few training steps"
    )
    ingest: Reserved = Reserved()
    latents: Reserved = Reserved()
    bank: Reserved = Reserved()
    prior: Reserved = Reserved()
    train: Reserved = Reserved()
    sample: Reserved = Reserved()
    evaluate: Reserved = Reserved()

    @field_validator("address")
    @classmethod
    def _jobs_or_join(cls, address: str | None) -> str | None:
        if address and address.startswith("ray://"):
            raise ValueError(
                f"cluster.address {address[:80]} is for Ray's client, whose work ends with the process that began it; "
                f"give the cluster's jobs API, such as http://{address.removeprefix('ray://').split(':')[0][:80]}:8265"
            )
        return address


class Tracking(Section):
    uri: str | None = operational(None, "MLflow's address; none: MLFLOW_TRACKING_URI, or SQLite in the store")
    lease_wait: float = operational(0, "seconds to wait for another run that builds the same artifact", ge=0)
