"""Where the Ray is that a recipe is run on: by its own word, or by the environment's."""

from __future__ import annotations

import os

from flows.recipe.cluster import Cluster
from storage.addresses import without_userinfo
from storage.errors import Refused


def address_of(cluster: Cluster) -> str | None:
    """Of the Ray that is to be used, by the recipe or the environment; None where it is embedded."""
    return cluster.address or os.environ.get("RAY_ADDRESS") or None


def jobs_address(cluster: Cluster) -> str | None:
    """The address of the cluster's jobs API, or None where jobs run in the flow's own process."""
    address = address_of(cluster) or ""
    if address.startswith("ray://"):
        shown = without_userinfo(address)
        raise Refused(f"RAY_ADDRESS {shown} is for Ray's client; give the cluster's jobs API, http://HOST:8265")
    return address if address.startswith(("http://", "https://")) else None
