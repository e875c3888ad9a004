"""What stages reserve leaves room for all who must work at once."""

from __future__ import annotations

import pytest

from flows.cluster.resources import READER_CPUS, Available, one_actor_per_device
from flows.recipe.model import Cluster, Reserved


@pytest.mark.parametrize("cpus", [1, 2, 3, 8, 64])
def test_readers_find_room_beside_encoders(cpus: int) -> None:
    for said in (Reserved(), Reserved(cpus=4)):
        have = one_actor_per_device(Cluster(), said, Available(cpus, 0))
        assert have.actors >= 1 and 0 < have.actors * have.cpus <= cpus - READER_CPUS
