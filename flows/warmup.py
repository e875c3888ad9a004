"""The servers that a run on this machine needs: each takes its 10 seconds, so they start beside each other and our imports."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress

# Here, since Ray in its thread and Prefect in ours would import it at the same moment, at which one of them fails.
import pydantic.v1.fields  # noqa: F401

from flows.cluster.address import address_of
from flows.cluster.connection import warm_up
from flows.console import tell
from flows.engine.stage import Stage
from flows.recipe.cluster import Cluster


def _start_prefect() -> None:
    from prefect import get_client

    with suppress(Exception):  # the flow tries again, and says what is wrong
        get_client(sync_client=True)


_prefect = threading.Thread(target=_start_prefect, name="prefect-start", daemon=True)


def begin(cluster: Cluster, stages: Iterable[Stage]) -> None:
    """Begins to start Ray, whose workers then import what those of the stages will, and Prefect's own server, where the
    environment names no others."""
    if _prefect.ident is not None:
        return
    importing = [stage for stage in stages if stage.workers_import]
    modules = tuple(dict.fromkeys(module for stage in importing for module in stage.workers_import))
    warm_up(cluster, modules, importing[0].resources if importing else None)
    from prefect.settings import PREFECT_API_URL

    starting = [] if address_of(cluster) else ["Ray"]
    starting += [] if PREFECT_API_URL.value() else ["Prefect's server"]
    if starting:
        tell(f"starting {' and '.join(starting)}, in some ten seconds")
    if not PREFECT_API_URL.value():
        import prefect.server.api.server  # noqa: F401 - which a client does before it starts one: here, ahead of our own
    _prefect.start()


def wait() -> None:
    """Until Prefect's server answers; a second client would not wait for one that the first is starting."""
    if _prefect.ident is not None:
        _prefect.join()
