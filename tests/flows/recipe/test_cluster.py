"""The sections of where the work runs: no part of what it makes, and no address whose work would end with its client."""

from __future__ import annotations

import pytest

from flows.recipe.files import RecipeError, load


def test_where_the_work_runs_is_no_part_of_what_it_makes() -> None:
    recipe = load("emoji", {"cluster": {"cpus": 3, "train": {"gpus": 1}}, "tracking": {"uri": "http://127.0.0.1:5000"}})
    assert (recipe.cluster.cpus, recipe.cluster.train.gpus) == (3, 1)
    for section in (recipe.cluster.train, recipe.tracking):
        assert section.identity() == {}


def test_the_address_of_rays_client_is_answered_with_that_of_its_jobs() -> None:
    with pytest.raises(RecipeError, match=r"give the cluster's jobs API, such as http://head:8265"):
        load("emoji", {"cluster": {"address": "ray://head:10001"}})
