"""Where tensors are, and who waits for whom: on a GPU that is only thought of, and on the one that is there.

Fake tensors carry a device and no numbers: where two of them meet on different devices, or somebody reads a number, that is
an error. So a step that runs with them has every tensor in its place and waits for nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily

from gmem import sampler
from gmem.batch import Batch, Draws, draw
from gmem.encoder import Encoder, build
from gmem.generator import Generator
from gmem.guard import Guard
from gmem.learner import Learner
from gmem.memory import Components
from gmem.network import Network
from gmem.pixels import from_bytes
from gmem.sampler import noise_for, sample
from gmem.settings import LearnerConfig, NetworkConfig, SamplerConfig
from gmem.threads import one_thread
from gmem.tokenizer import load_tokenizer

SHAPE, SNIPPET, TOKENS, COUNT = (4, 4, 4), 16, 24, 6
CONFIG = LearnerConfig(lr=1e-2, precision="fp32", seed=3, drop=0.2, emas=(0.5,))
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    with one_thread():
        yield


def moved(module: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Module:
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(change(parameter.detach()), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = change(buffer)
    return module


@pytest.fixture
def thought_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A GPU that need not be there."""
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, raising=False)
    monkeypatch.setattr(torch.nn.Module, "_apply", moved)  # its own exchanges tensors in place, which fake ones refuse
    with FakeTensorMode():
        yield "cuda"


def make_network(**rest: Any) -> Network:
    torch.manual_seed(0)
    values = {"projection_dim": TOKENS, "projection_hidden": 32, "projection_after": 1} | rest
    return Network(NetworkConfig(3, 32, 2, latent_channels=4, latent_size=4, snippet_dim=SNIPPET, **values))


def inputs(tokens: int = TOKENS, step: int = 0) -> tuple[Batch, Draws]:
    """Of a step, on the CPU."""
    generator = torch.Generator().manual_seed(step)
    latent, snippet, patches = (
        torch.randn(COUNT, *shape, generator=generator) for shape in (SHAPE, (SNIPPET,), (16, tokens))
    )
    batch = Batch(latent, snippet, patches, torch.zeros(COUNT, dtype=torch.int64))
    return batch, draw(CONFIG.seed, step, COUNT, SHAPE, SNIPPET, slice(None), tokens=16)


def given(learner: Learner) -> None:
    for parameter in learner.parameters.values():
        parameter.grad = torch.empty_like(parameter)


def devices(values: Any) -> set[str]:
    return {tensor.device.type for tensor in values}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"precision": "bf16"},
        {"route": 0.5, "micro_batch": 4},
        {"recompute": True},
        {"components": 5},
        {"label": True},
    ],
)
def test_a_step_waits_for_nothing_and_has_every_tensor_on_the_device(
    thought_of: str, device: str, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {name: changed[name] for name in ("micro_batch", "recompute") if name in changed}
    settings = {name: changed[name] for name in ("precision", "route") if name in changed}
    width = changed.get("components", TOKENS)
    if "components" in changed:
        options["components"] = Components(torch.randn(TOKENS), torch.randn(width, TOKENS))
    network = make_network(**({"conditioning": "label", "classes": 3} if "label" in changed else {}))
    learner = Learner(network, dataclasses.replace(CONFIG, **settings), device, **options)
    guard = Guard(10, 5, device)
    if device == thought_of:  # automatic differentiation asks the driver: there, gradients are given
        monkeypatch.setattr(torch.Tensor, "backward", lambda _: given(learner))
    batch, draws = inputs(width)
    for _ in range(2):
        result = learner.launch(batch, draws, COUNT, guard.limit)
        guard.judge(result["velocity"], result["skipped"])
    assert devices(result.values()) == devices(learner._weights().values()) == {device}
    assert devices(learner.optimiser.moments().values()) == devices([guard.limit, guard.bad]) == {device}
    with pytest.raises(DataDependentOutputException):
        float(result["total"])


@pytest.mark.parametrize("kind", ["ode", "sde"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_samples_are_made_on_the_device_without_waiting(
    thought_of: str, kind: Any, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def really(*asked: Any) -> list[Any]:
        with unset_fake_temporarily():
            return list(intervals(*asked))

    intervals = sampler._intervals
    monkeypatch.setattr(sampler, "_intervals", really)  # which are numbers of the host's own
    network = make_network().eval().to(thought_of)
    snippets = torch.randn(COUNT, SNIPPET, device=thought_of)
    config = SamplerConfig(kind, "heun", 4, guidance=2.0, guidance_until=0.5, precision=precision)
    noise = torch.randn(COUNT, *SHAPE, device=thought_of)
    wiener = torch.randn(4, COUNT, *SHAPE, device=thought_of)
    label = torch.zeros(COUNT, dtype=torch.int64, device=thought_of)
    guided = sampler._Guided(network, snippets, label, config, None, COUNT)
    if kind == "ode":
        made = sampler._ode(guided, noise, config)
    else:
        made = sampler._sde(guided, noise, config, lambda step: wiener[step])
    assert made.device.type == "cuda" and made.dtype == torch.float32 and made.shape == noise.shape


def test_a_reader_of_numbers_and_a_tensor_elsewhere_would_be_seen(thought_of: str) -> None:
    there = torch.ones(3, device=thought_of)
    with pytest.raises(DataDependentOutputException):
        bool(there.sum() > 1)
    with pytest.raises(RuntimeError, match="two devices"):
        there + torch.ones(3)


# --- on every device that is there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_goes_on_with_the_same_bits(device: str, precision: Any) -> None:
    config = dataclasses.replace(CONFIG, precision=precision)

    def train(learner: Learner, until: int) -> Learner:
        for step in range(learner.steps, until):
            batch, draws = inputs(step=step)
            if device == "cuda":
                batch, draws = batch.pinned(), draws.pinned()
            learner.launch(batch, draws, COUNT)
        return learner

    straight = train(Learner(make_network(), config, device), 5)
    tensors, progress = train(Learner(make_network(), config, device), 2).state()
    saved = {name: value.cpu().clone() for name, value in tensors.items()}
    resumed = Learner(make_network(), config, device)
    resumed.load_state(saved, progress)
    train(resumed, 5)
    for name, value in straight.state()[0].items():
        assert torch.equal(value, resumed.state()[0][name]), name


@pytest.mark.parametrize("device", DEVICES)
def test_pictures_of_every_device_are_those_of_the_cpu(device: str) -> None:
    torch.manual_seed(0)
    network = Network(NetworkConfig.of("T", patch=2, latent_channels=12, latent_size=8, snippet_dim=SNIPPET)).eval()
    snippets = torch.nn.functional.normalize(torch.randn(2, SNIPPET), dim=1)
    config, indices = SamplerConfig("ode", "euler", steps=3), torch.arange(2)

    def images(device: str) -> torch.Tensor:
        zeros, ones = torch.zeros(12, device=device), torch.ones(12, device=device)
        generator = Generator(network.to(device), load_tokenizer("shipped:emoji-tokenizer", device), zeros, ones)
        return generator.images(snippets.to(device), indices, config, seed=0)[0].cpu()

    expected, made = images("cpu"), images(device)
    assert (expected.int() - made.int()).abs().max() <= 2


@pytest.mark.parametrize("device", DEVICES)
def test_features_of_every_device_are_those_of_the_cpu(device: str) -> None:
    torch.manual_seed(0)
    model, preprocessing = build("vit_tiny_patch16_224", 32, pretrained=False)
    pictures = from_bytes(torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8))
    expected = Encoder(model, "random", preprocessing, "cpu")(pictures).snippet
    found = Encoder(model, "random", preprocessing, device)(pictures.to(device)).snippet
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_blocks_compiled_by_inductor_make_the_same_samples_and_take_the_same_step(device: str) -> None:
    """All of it: code is written and compiled here, for the processor or the GPU."""
    network = NetworkConfig(1, 32, 2, latent_channels=4, latent_size=4, snippet_dim=SNIPPET)
    plain, compiled = (Learner(Network(network), CONFIG, device, compile=value) for value in (False, True))
    compiled.load_state(*plain.state())
    batch, draws = inputs()
    assert plain.step(batch, draws, COUNT) == pytest.approx(compiled.step(batch, draws, COUNT), rel=1e-4, abs=1e-6)

    noise, snippets = noise_for(0, range(3), SHAPE).to(device), torch.randn(3, SNIPPET, device=device)
    config = SamplerConfig("sde", "heun", 4, guidance=2.0, guidance_until=0.5)
    before = sample(plain.network.eval(), noise, snippets, config).latent
    plain.network.compile_blocks()
    after = sample(plain.network, noise, snippets, config).latent
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)
