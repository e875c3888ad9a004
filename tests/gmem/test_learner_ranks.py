"""Two workers with shares of unequal size, by `DistributedDataParallel`, train what one worker trains."""

import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gmem.learner import Batch, Learner, LearnerConfig, draw
from gmem.network import Network, NetworkConfig

BATCH, STEPS, SHAPE = 7, 3, (4, 4, 4)
CUTS = (slice(0, 5), slice(5, 7))
CONFIG = LearnerConfig(lr=1e-3, precision="fp32", micro_batch=2, drop_rate=0.1)


def make_learner(wrap=None, ranks: int = 1) -> Learner:
    torch.manual_seed(0)
    network = Network(
        NetworkConfig(
            2, 32, 2, 1, *SHAPE[:2], snippet_dim=8, projection_dim=6, projection_hidden=16, projection_after=1
        )
    )
    return Learner(network, CONFIG, wrap=wrap, ranks=ranks)


def train(learner: Learner, rows: slice) -> list[float]:
    g = torch.Generator().manual_seed(1)
    whole = Batch(
        torch.randn(BATCH, *SHAPE, generator=g), torch.randn(BATCH, 8, generator=g), torch.randn(BATCH, 16, 6)
    )
    whole = whole._replace(tokens=torch.randn(BATCH, 16, 6, generator=g))
    share = Batch(*(part if part is None else part[rows] for part in whole))
    return [learner.step(share, draw(CONFIG, step, BATCH, SHAPE, 8, rows), BATCH)["total"] for step in range(STEPS)]


def work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    learner = make_learner(DistributedDataParallel, 2)
    losses = train(learner, CUTS[rank])
    torch.save({"losses": losses, "weights": learner.state()[0]}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.timeout(180)
def test_two_unequal_workers_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = make_learner()
    expected = train(alone, slice(0, BATCH))
    workers = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(port), str(tmp_path)], stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    for worker in workers:
        errors = worker.communicate(timeout=150)[1]
        assert worker.returncode == 0, errors.decode()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert [a + b for a, b in zip(first["losses"], second["losses"], strict=True)] == pytest.approx(expected, rel=1e-4)
    for name, value in alone.state()[0].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], value, atol=2e-5, rtol=1e-3)


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
