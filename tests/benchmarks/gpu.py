"""What this machine's GPU gives the method: `make bench-gpu`, or this file and float8.py where nothing but torch, timm and
gmem is.

Rates of matrix products and copies are measured first, in the same run: every other figure is to be seen beside them.
A row that fails says why and ends nothing else.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from float8 import in_float8
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gmem.batch import Batch, Draws
from gmem.encoder import Encoder, build
from gmem.learner import Learner
from gmem.network import Network
from gmem.parallel import Sharded
from gmem.sampler import sample
from gmem.settings import LearnerConfig, NetworkConfig, SamplerConfig, SizeName

LIMIT_SECONDS = 480
"""For everything; measurements that would begin later are left out, and said to be."""


@dataclass(frozen=True)
class Row:
    what: str
    value: float | None
    unit: str
    least: float | None = None
    """What it should be at least, in the same unit."""
    note: str = ""


@dataclass
class Scale:
    """How large everything is: `GPU` for the figures, a small one to see that all of it runs."""

    matrix: int = 8192
    copy_bytes: int = 1 << 32
    sizes: dict[SizeName, int] = field(default_factory=lambda: {"B": 256, "XL": 128})
    """Size of network and pictures in a step."""
    grid: int = 16
    channels: int = 32
    encoder: str = "vit_base_patch14_dinov2.lvd142m"
    image: int = 256
    pictures: int = 256
    repeats: int = 10
    sampled: int = 64
    points: int = 50
    compiled: bool = True


SMALL = Scale(64, 1 << 16, {"T": 4}, 4, 4, "vit_tiny_patch16_224", 224, 1, 1, 2, 3, compiled=False)
TARGETS = {"B": 0.5, "XL": 0.6}
"""Share of the matrix rate that a training step should reach."""


class Bench:
    def __init__(self, scale: Scale, device: torch.device) -> None:
        self.scale, self.device = scale, device
        self.rows: list[Row] = []
        self.rate = float("nan")
        self.began = time.perf_counter()

    def add(self, what: str, value: float | None, unit: str, least: float | None = None, note: str = "") -> None:
        row = Row(what, value, unit, least, note)
        self.rows.append(row)
        shown = "not measured" if value is None else f"{value:,.4g} {unit}"
        aim = "" if least is None else f"  (aim {least:,.4g})"
        print(f"{what:<58} {shown}{aim}  {note}", flush=True)

    def attempt(self, what: str, measure: Callable[[], None]) -> None:
        """Runs it; a failure is a row with the reason."""
        if time.perf_counter() - self.began > LIMIT_SECONDS:
            self.add(what, None, "", note="no time was left")
            return
        try:
            measure()
        except (RuntimeError, TypeError, ValueError, OSError) as error:  # of driver, compiler or memory
            self.add(what, None, "", note=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}")
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def seconds(self, function: Callable[[], object], repeats: int | None = None) -> float:
        """Mean time of a call, after two that do not count."""
        repeats = repeats or self.scale.repeats
        for _ in range(2):
            function()
        self._wait()
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        self._wait()
        return (time.perf_counter() - start) / repeats

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    # --- the machine -------------------------------------------------------------------------------------------------

    def machine(self) -> None:
        side = self.scale.matrix
        a, b = (torch.randn(side, side, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        self.rate = 2 * side**3 / self.seconds(lambda: a @ b)
        self.add("matrix product, bf16", self.rate / 1e12, "TFLOP/s")
        source = torch.zeros(self.scale.copy_bytes // 4, device=self.device)
        target = torch.empty_like(source)
        moved = 2 * self.scale.copy_bytes
        self.add(
            "copy on the device, read and written", moved / self.seconds(lambda: target.copy_(source)) / 1e9, "GB/s"
        )

    def float8(self) -> None:
        side = self.scale.matrix
        a, b = (torch.randn(side, side, device=self.device).to(torch.float8_e4m3fn) for _ in range(2))
        one = torch.ones((), device=self.device)
        seconds = self.seconds(lambda: torch._scaled_mm(a, b.T, one, one, out_dtype=torch.bfloat16))
        self.add("matrix product, float8", 2 * side**3 / seconds / 1e12, "TFLOP/s")

    # --- training ----------------------------------------------------------------------------------------------------

    def config(self, size: SizeName) -> NetworkConfig:
        return NetworkConfig.of(
            size, latent_channels=self.scale.channels, latent_size=self.scale.grid, projection_dim=768
        )

    def batch(self, config: NetworkConfig, count: int) -> tuple[Batch, Draws]:
        def normal(*shape: int) -> Tensor:
            return torch.randn(count, *shape, device=self.device)

        tokens = normal(config.grid**2, config.projection_dim).half()
        batch = Batch(normal(*config.latent_shape), normal(config.snippet_dim), tokens)
        mask, drop = torch.rand(count, config.snippet_dim, device=self.device), torch.rand(count, device=self.device)
        return batch, Draws(normal(*config.latent_shape), normal(), mask, drop, route=normal(0))

    def learner(self, config: NetworkConfig, **options: bool | int | Sharded) -> Learner:
        torch.manual_seed(0)
        return Learner(Network(config), LearnerConfig(), self.device, **options)  # type: ignore[arg-type]

    def training(self, size: SizeName, count: int) -> None:
        """Eager, compiled and in micro-batches; the share of the step in which weights and averages move."""
        config = self.config(size)
        batch, draws = self.batch(config, count)
        learner = self.learner(config)
        with FlopCounterMode(display=False) as counter:
            learner.step(batch, draws, count)
        flop = counter.get_total_flops()
        self.add(f"{size}/1: work of a training picture", flop / count / 1e9, "GFLOP")

        def step(name: str, learner: Learner, least: float | None) -> float:
            self._forget_peak()
            seconds = self.seconds(lambda: learner.step(batch, draws, count))
            self.add(f"{size}/1 step, {name}", count / seconds, "pictures/s")
            share = flop / seconds / self.rate
            self.add(f"{size}/1 step, {name}: share of the matrix rate", share, "", least, self._peak())
            return seconds

        name, seconds = "eager", step("eager", learner, None)
        if self.scale.compiled:
            del learner
            learner = self.learner(config, compile=True)
            began = time.perf_counter()
            learner.step(batch, draws, count)
            self.add(f"{size}/1: first compiled step", time.perf_counter() - began, "s")
            name, seconds = "compiled", step("compiled", learner, TARGETS.get(size))
        gradients = [p.grad for p in learner.parameters.values() if p.grad is not None]
        trusted = torch.ones((), dtype=torch.bool, device=self.device)

        def finish() -> None:
            learner._update(torch.nn.utils.get_total_norm(gradients), trusted)

        share = self.seconds(finish) / seconds
        self.add(f"{size}/1: clip, optimiser and average, share of the step", share, "", note="aim at most 0.08")
        learner.micro_batch = max(1, count // 2)
        step(f"{name}, two micro-batches", learner, None)

    def recomputing(self, size: SizeName, count: int) -> None:
        """The same step where the backward pass computes blocks again: less memory for more time."""
        config = self.config(size)
        batch, draws = self.batch(config, count)
        learner = self.learner(config, compile=self.scale.compiled, recompute=True)
        self._forget_peak()
        seconds = self.seconds(lambda: learner.step(batch, draws, count))
        self.add(f"{size}/1 step, blocks computed again", count / seconds, "pictures/s", note=self._peak())

    def float8_layers(self, size: SizeName, count: int) -> None:
        """The same step where the layers that tokens pass go by float8, forward and backward."""
        config = self.config(size)
        batch, draws = self.batch(config, count)
        torch.manual_seed(0)
        network = Network(config)
        layers = in_float8(network)
        learner = Learner(network, LearnerConfig(), self.device, compile=self.scale.compiled)
        self._forget_peak()
        seconds = self.seconds(lambda: learner.step(batch, draws, count))
        self.add(f"{size}/1 step, {layers} layers by float8", count / seconds, "pictures/s", note=self._peak())

    def graphs(self, size: SizeName, count: int) -> None:
        """The same step where each compiled block is one launch, a CUDA graph."""
        if self.device.type != "cuda":
            raise RuntimeError("CUDA graphs are a GPU's")
        config = self.config(size)
        batch, draws = self.batch(config, count)
        learner = self.learner(config)
        for block in learner.network.blocks:
            block.compile(mode="reduce-overhead")

        def step() -> None:
            torch.compiler.cudagraph_mark_step_begin()
            learner.step(batch, draws, count)

        self._forget_peak()
        seconds = self.seconds(step)
        self.add(f"{size}/1 step, CUDA graphs", count / seconds, "pictures/s", note=self._peak())

    def sharded(self, size: SizeName, count: int) -> None:
        """The same step under FSDP2 with one rank: what sharding itself costs."""
        config = self.config(size)
        batch, draws = self.batch(config, count)
        with tempfile.TemporaryDirectory() as folder:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, init_method=f"file://{folder}/ranks", rank=0, world_size=1)
            try:
                learner = self.learner(config, parallel=Sharded())
                seconds = self.seconds(lambda: learner.step(batch, draws, count))
            finally:
                dist.destroy_process_group()
        self.add(f"{size}/1 step, eager, FSDP2 with one rank", count / seconds, "pictures/s")

    def resume(self, size: SizeName) -> None:
        """Whether a training that is interrupted and goes on ends with the same bits."""
        config, count = self.config(size), 8
        steps = [self.batch(config, count) for _ in range(6)]
        whole, first = self.learner(config), self.learner(config)
        for batch, draws in steps:
            whole.step(batch, draws, count)
        for batch, draws in steps[:3]:
            first.step(batch, draws, count)
        tensors, progress = first.state()
        second = self.learner(config)
        second.load_state({name: value.cpu().clone() for name, value in tensors.items()}, copy.deepcopy(progress))
        for batch, draws in steps[3:]:
            second.step(batch, draws, count)
        mine, theirs = second.state()[0], whole.state()[0]
        apart = max(float((mine[name].float() - theirs[name].float()).abs().max()) for name in theirs)
        self.add(f"{size}/1: largest difference after a resume", apart, "", note="0: the same bits")

    # --- sampling and features ---------------------------------------------------------------------------------------

    def sampling(self, size: SizeName) -> None:
        """SDE Heun, beside the plain form of it with a network call for each of drift and score."""
        config, count = self.config(size), self.scale.sampled
        network = Network(config).to(self.device).eval()
        noise, snippet = self.batch(config, count)[0][:2]
        index = torch.arange(count)

        @torch.inference_mode()
        def ours(precision: str) -> None:
            sample(
                network,
                noise,
                snippet,
                SamplerConfig(steps=self.scale.points, precision=precision),
                seed=0,
                indices=index,
            )  # type: ignore[arg-type]

        @torch.inference_mode()
        def plain() -> None:
            x, grid = noise, torch.linspace(0, 0.996, self.scale.points).tolist()

            def drift(x: Tensor, t: float) -> Tensor:
                at = torch.full((count,), t, device=self.device)
                score = (t * network(x, at, snippet) - x) / (1 - t)
                return network(x, at, snippet) + (1 - t) * score

            for t, end in pairwise(grid):
                x = x + (2 * (1 - t) * (end - t)) ** 0.5 * torch.randn_like(x)
                first = drift(x, t)
                x = x + (end - t) / 2 * (first + drift(x + (end - t) * first, end))

        theirs = self.seconds(plain, 1)
        self.add(f"{size}/1 sampling, plain form, fp32", count / theirs, "pictures/s")
        for precision, least in (("fp32", 1.8), ("tf32", None), ("bf16", None)):
            seconds = self.seconds(lambda precision=precision: ours(precision), 1)  # type: ignore[misc]
            self.add(f"{size}/1 sampling, {precision}", count / seconds, "pictures/s")
            self.add(f"{size}/1 sampling, {precision}: times the plain form", theirs / seconds, "", least)
        if self.scale.compiled:
            network.compile_blocks()
            seconds = self.seconds(lambda: ours("bf16"), 1)
            self.add(f"{size}/1 sampling, compiled, bf16", count / seconds, "pictures/s")

    def features(self) -> None:
        """The encoder of the bank, on pictures that are on the device already."""
        model, preprocessing = build(self.scale.encoder, self.scale.image, pretrained=False)
        encoder = Encoder(model, "random", preprocessing, self.device)
        side = self.scale.image
        images = torch.rand(self.scale.pictures, 3, side, side, device=self.device) * 2 - 1
        self.add(f"features of {self.scale.encoder}", len(images) / self.seconds(lambda: encoder(images)), "pictures/s")

    def _forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def _peak(self) -> str:
        return f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if self.device.type == "cuda" else ""

    def run(self) -> None:
        self.attempt("matrix product", self.machine)
        self.attempt("matrix product, float8", self.float8)
        sizes = list(self.scale.sizes.items())
        for size, count in sizes:
            self.attempt(f"{size}/1 step", lambda size=size, count=count: self.training(size, count))  # type: ignore[misc]
            self.attempt(
                f"{size}/1 step, blocks computed again", lambda size=size, count=count: self.recomputing(size, count)
            )  # type: ignore[misc]
            self.attempt(f"{size}/1 step, float8", lambda size=size, count=count: self.float8_layers(size, count))  # type: ignore[misc]
        self.attempt("CUDA graphs", lambda: self.graphs(*sizes[0]))
        self.attempt("FSDP2 with one rank", lambda: self.sharded(*sizes[0]))
        self.attempt("resume", lambda: self.resume(sizes[0][0]))
        self.attempt("sampling", lambda: self.sampling(sizes[0][0]))
        self.attempt("features", self.features)

    def to_dict(self) -> dict[str, object]:
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda if cuda else None,
            "date": time.strftime("%Y-%m-%d"),
            "seconds": round(time.perf_counter() - self.began, 1),
            "rows": [asdict(row) for row in self.rows],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that everything runs")
    arguments = parser.parse_args()
    if not (torch.cuda.is_available() or arguments.small):
        raise SystemExit(
            "there is no CUDA GPU that torch can use here; --small runs everything in tiny sizes on the CPU"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(SMALL if arguments.small else Scale(), device)
    bench.run()
    print(json.dumps({k: v for k, v in bench.to_dict().items() if k != "rows"}))
    if arguments.out:
        arguments.out.write_text(json.dumps(bench.to_dict(), indent=1))


if __name__ == "__main__":
    main()
