"""What stages reserve leaves room for all who must work at once."""

from __future__ import annotations

import pytest

from flows.cluster.resources import READER_CPUS, Available, one_actor_per_device, one_worker_per_gpu
from flows.recipe.cluster import Cluster, Reserved


@pytest.mark.parametrize("cpus", [1, 2, 3, 8, 64])
def test_readers_find_room_beside_encoders(cpus: int) -> None:
    for said in (Reserved(), Reserved(cpus=4)):
        have = one_actor_per_device(Cluster(), said, Available(cpus, 0))
        assert have.actors >= 1 and 0 < have.actors * have.cpus <= cpus - READER_CPUS


@pytest.mark.parametrize(("cpus", "gpus", "runs"), [(2, 0, 2), (64, 0, 4), (64, 8, 4), (64, 8, 3), (8, 1, 2)])
def test_runs_that_share_a_cluster_reserve_no_more_cpus_than_there_are(cpus: int, gpus: int, runs: int) -> None:
    whole = Available(cpus, gpus)
    mine = whole.shared(1 / runs)
    assert whole.shared(1) == whole and mine.gpus == min(gpus, max(1, gpus // runs))
    encoders = one_actor_per_device(Cluster(), Reserved(), mine)
    assert runs * encoders.actors * encoders.cpus <= cpus - runs * READER_CPUS + 1e-9
    trainers = one_worker_per_gpu(Cluster(), Reserved(), mine)
    assert trainers.actors == max(1, mine.gpus) and runs * trainers.actors * trainers.cpus <= cpus
