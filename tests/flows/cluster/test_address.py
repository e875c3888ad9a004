"""Which addresses are whose: of the jobs API, of Ray itself, of nobody."""

from __future__ import annotations

import pytest

from flows.cluster.address import jobs_address
from flows.recipe.cluster import Cluster
from flows.recipe.files import RecipeError, load


@pytest.mark.parametrize("address", ["ray://head:10001"])
def test_rays_client_is_refused_with_what_to_say_instead(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"http://head:8265"):
        load("emoji", {"cluster": {"address": address}})
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match="http://"):
        jobs_address(Cluster())


def test_jobs_are_submitted_where_the_address_is_one_of_the_jobs_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert jobs_address(Cluster()) is None
    assert jobs_address(Cluster(address="auto")) is None
    assert jobs_address(Cluster(address="https://head:8265")) == "https://head:8265"
