"""Three workers with shares of unequal size train what one worker trains, and go on with the same bits."""

import dataclasses
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from gmem.batch import Batch, draw
from gmem.learner import Learner
from gmem.network import Network
from gmem.parallel import Alone, Replicated, Sharded
from gmem.settings import LearnerConfig, NetworkConfig
from gmem.threads import one_thread

BATCH, STEPS, SHAPE = 7, 4, (4, 4, 4)
CUTS = (slice(0, 3), slice(3, 5), slice(5, 7))
WAYS = {
    "replicated": (Replicated, "adamw", "fp32"),
    "sharded": (Sharded, "adamw", "fp32"),
    "sharded in bf16": (Sharded, "adamw", "bf16"),
    "muon": (Replicated, "muon", "fp32"),
}
CONFIG = LearnerConfig(lr=1e-3, precision="fp32", drop=0.1, emas=(0.5,), route=0.25)


def make_learner(optimiser: str, precision: str, parallel: Alone | None = None, summed=None) -> Learner:
    torch.manual_seed(0)
    network = Network(
        NetworkConfig(3, 32, 2, *SHAPE[:2], snippet_dim=8, projection_dim=6, projection_hidden=16, projection_after=1)
    )
    config = dataclasses.replace(CONFIG, optimiser=optimiser, precision=precision)
    return Learner(network, config, parallel=parallel, summed=summed, micro_batch=2)


def train(learner: Learner, rows: slice, until: int = STEPS) -> list[float]:
    g = torch.Generator().manual_seed(1)
    whole = Batch(
        torch.randn(BATCH, *SHAPE, generator=g), torch.randn(BATCH, 8, generator=g), torch.randn(BATCH, 16, 6)
    )
    whole = whole._replace(tokens=torch.randn(BATCH, 16, 6, generator=g))
    share = Batch(*(part if part is None else part[rows] for part in whole))
    return [
        learner.step(share, draw(CONFIG.seed, step, BATCH, SHAPE, 8, rows, tokens=16), BATCH)["total"]
        for step in range(learner.steps, until)
    ]


def summed(shares: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(shares)
    return shares


def types_of_weights(network: Network) -> dict[str, torch.dtype]:
    """Filled as soon as the network runs: in what a block's weights are there then, and those of the time's embedding."""
    seen: dict[str, torch.dtype] = {}
    for name, layer in {"qkv": network.blocks[0].attn.qkv, "t_embedder": network.t_embedder.mlp[0]}.items():
        layer.register_forward_pre_hook(lambda layer, _, name=name: seen.setdefault(name, layer.weight.dtype) and None)
    return seen


def work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(CUTS))
    for name, (way, *how) in WAYS.items():
        learner = make_learner(*how, way(), summed)
        fetched = types_of_weights(learner.network)
        losses = train(learner, CUTS[rank])
        first = make_learner(*how, way(), summed)
        train(first, CUTS[rank], until=2)
        first.gather()
        tensors, progress = first.state()
        resumed = make_learner(*how, way(), summed)
        resumed.load_state({name: value.clone() for name, value in tensors.items()}, progress)
        train(resumed, CUTS[rank])
        learner.gather()
        resumed.gather()
        result = {"losses": losses, "weights": learner.state()[0], "resumed": resumed.state()[0], "fetched": fetched}
        torch.save(result, f"{folder}/{name}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.timeout(180)
def test_three_unequal_workers_train_as_one_and_resume_exactly(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(port), str(tmp_path)], stderr=subprocess.PIPE)
        for rank in range(len(CUTS))
    ]
    for worker in workers:
        errors = worker.communicate(timeout=150)[1]
        assert worker.returncode == 0, errors.decode()
    for way, (kind, optimiser, precision) in WAYS.items():
        alone = make_learner(optimiser, precision)
        rough = precision == "bf16"  # weights near zero round to others, and AdamW's first steps are all of one length
        with one_thread():
            expected = train(alone, slice(0, BATCH))
        results = [torch.load(tmp_path / f"{way}-{rank}.pt", weights_only=True) for rank in range(len(CUTS))]
        for result in results:
            assert result["losses"] == pytest.approx(expected, rel=1e-2 if rough else 1e-4)
            halved = torch.bfloat16 if rough and kind is Sharded else torch.float32
            assert result["fetched"] == {"qkv": halved, "t_embedder": torch.float32}
            assert result["weights"].keys() == alone.state()[0].keys()
            for name, value in alone.state()[0].items():
                assert torch.equal(results[0]["weights"][name], result["weights"][name]), name
                assert torch.equal(result["resumed"][name], result["weights"][name]), name
                if rough:
                    assert (result["weights"][name] - value).abs().mean() < CONFIG.lr / 4, name
                else:
                    torch.testing.assert_close(result["weights"][name], value, atol=2e-5, rtol=1e-3)


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
