import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gmem.layers import _ModulatedNorm, _SwiGLU
from gmem.network import Network, parameter_count
from gmem.settings import SIZES, NetworkConfig

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason=f"no golden numbers at {GOLDEN}")

TINY = {"depth": 2, "width": 32, "heads": 2, "latent_channels": 4, "latent_size": 4, "snippet_dim": 16}

MILLIONS = {
    "S": (39.45, 6.56), "B": (137.72, 7.34), "L": (465.78, 7.87), "XL": (683.12, 8.13),
    "1p0B": (1037.96, 8.92), "1p6B": (1640.79, 9.44),
}  # fmt: skip


def golden_network() -> tuple[Network, dict[str, torch.Tensor]]:
    golden = load_file(GOLDEN / "network_tiny.safetensors")
    with safe_open(GOLDEN / "network_tiny.safetensors", "pt") as file:
        about = json.loads(file.metadata()["config"])
    network = Network(
        NetworkConfig(
            about["depth"], about["hidden"], about["heads"], about["latent_channels"],
            about["latent_size"], about["snippet_dim"], patch=about["patch"], projection_dim=768,
            projection_after=about["projection_after_block"],
        )
    )  # fmt: skip
    network.load_state_dict({k.removeprefix("weights/"): v.float() for k, v in golden.items() if "weights/" in k})
    return network.eval(), golden


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


@needs_golden
@torch.no_grad()
def test_published_numbers():
    network, golden = golden_network()
    inputs = [golden[f"input/{name}"] for name in ("latent", "time", "snippet")]
    assert largest(network(*inputs), golden["output/velocity"]) < 5e-6
    velocity, projected = network.forward_training(*inputs)
    assert largest(velocity, golden["output/velocity_training"]) < 5e-6
    assert largest(projected, golden["output/projection_training"]) < 5e-6


@needs_golden
def test_positions_and_turns_are_the_published_ones():
    golden = load_file(GOLDEN / "network_tiny.safetensors")
    fresh = Network(NetworkConfig(6, 96, 4, latent_channels=8, latent_size=4)).state_dict()
    for name in ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"):
        assert largest(fresh[name], golden[f"weights/{name}"]) < 1e-6


@needs_golden
@pytest.mark.parametrize(("size", "name"), [("B", "B-1"), ("XL", "XL-1")])
def test_names_and_shapes_are_the_published_ones(size, name):
    published = json.loads((GOLDEN / f"keys_LightningDiT-{name}.json").read_text())
    with torch.device("meta"):
        network = Network(NetworkConfig.of(size, projection_dim=768))
    assert {name: list(value.shape) for name, value in network.state_dict().items()} == published


@pytest.mark.parametrize("size", MILLIONS)
def test_parameter_counts(size):
    with torch.device("meta"):
        network = Network(NetworkConfig.of(size, patch=2 if size == "L" else 1, projection_dim=768))
    total, head = MILLIONS[size]
    assert parameter_count(network) / 1e6 == pytest.approx(total, abs=0.01)
    assert parameter_count(network.projector) / 1e6 == pytest.approx(head, abs=0.01)


def test_the_demo_network_is_small():
    assert 6e6 < parameter_count(Network(NetworkConfig.of("T", latent_channels=8, latent_size=8))) < 8e6
    assert "T" in SIZES


@pytest.mark.parametrize("patch", [1, 2])
def test_patches_and_image_are_inverse_and_local(patch):
    network = Network(NetworkConfig(**TINY, patch=patch))
    x = torch.arange(2 * 4 * 4 * 4.0).reshape(2, 4, 4, 4)
    patches = network._patches(x)
    assert patches.shape == (2, (4 // patch) ** 2, 4 * patch**2)
    convolution = network.x_embedder.proj(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(network.x_embedder(patches), convolution, atol=1e-4, rtol=1e-5)
    channels_last = patches.unflatten(2, (4, patch, patch)).permute(0, 1, 3, 4, 2).flatten(2)
    assert torch.equal(network._image(channels_last), x)


def test_patch_2_gives_a_velocity_and_a_quarter_of_the_tokens():
    network = Network(NetworkConfig(**TINY, patch=2, projection_dim=8, projection_hidden=16, projection_after=1))
    velocity, projected = network.forward_training(torch.randn(3, 4, 4, 4), torch.rand(3), torch.randn(3, 16))
    assert velocity.shape == (3, 4, 4, 4) and projected.shape == (3, 4, 8)


@torch.no_grad()
def test_conditioning_decides_what_counts():
    x, t, snippet, label = torch.randn(2, 4, 4, 4), torch.rand(2), torch.randn(2, 16), torch.tensor([0, 2])
    memory = Network(NetworkConfig(**TINY))
    assert not torch.equal(memory(x, t, snippet), memory(x, t, -snippet))
    assert torch.equal(memory(x, t), memory(x, t, torch.zeros(2, 16)))
    none = Network(NetworkConfig(**TINY, conditioning="none"))
    assert torch.equal(none(x, t, snippet), none(x, t))
    labelled = Network(NetworkConfig(**TINY, conditioning="label", classes=3))
    assert not torch.equal(labelled(x, t, None, label), labelled(x, t, None, label.flip(0)))
    for nothing in (torch.tensor([3, 3]), torch.tensor([-1, -1])):  # as unlabelled pictures have it
        assert torch.equal(labelled(x, t), labelled(x, t, None, nothing))


@torch.no_grad()
def test_a_data_prediction_comes_out_as_velocity():
    torch.manual_seed(0)
    data = Network(NetworkConfig(**TINY, prediction="data"))
    plain = Network(NetworkConfig(**TINY))
    plain.load_state_dict(data.state_dict())
    x, t, snippet = torch.randn(2, 4, 4, 4), torch.tensor([0.1, 0.8]), torch.randn(2, 16)
    clean = x + (1 - t)[:, None, None, None] * data(x, t, snippet)
    torch.testing.assert_close(clean, plain(x, t, snippet), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_zero_initialisation_starts_silent():
    network = Network(NetworkConfig(**TINY, initialisation="zero"))
    assert network(torch.randn(2, 4, 4, 4), torch.rand(2), torch.randn(2, 16)).abs().max() == 0


def test_hand_written_gradients_are_right():
    torch.manual_seed(0)
    x, multiplier, shift = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 8), (2, 1, 8), (2, 1, 8))
    )
    assert torch.autograd.gradcheck(_ModulatedNorm.apply, (x, multiplier, shift))
    assert torch.autograd.gradcheck(_SwiGLU.apply, (x,))


def test_bf16_autocast_keeps_time_and_output_in_float32():
    network = Network(NetworkConfig(**TINY))
    x, t, snippet = torch.randn(2, 4, 4, 4), torch.rand(2), torch.randn(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x, t, snippet)
    assert rounded.dtype == torch.float32
    assert (rounded - network(x, t, snippet)).abs().max() < 0.1


def test_config_goes_through_json():
    config = NetworkConfig.of("B", patch=2, projection_dim=768)
    assert NetworkConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"heads": 3}, "rotary"), ({"patch": 3}, "at most 2"), ({"conditioning": "text"}, "use one of"),
        ({"conditioning": "label"}, "classes"), ({"depth": 0}, "depth is 0"),
        ({"projection_dim": 8, "projection_after": 3}, "projection_after 3"),
    ],
)  # fmt: skip
def test_impossible_networks_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        NetworkConfig(**(TINY | change))


def test_a_latent_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"latents of \(4, 4, 4\)"):
        Network(NetworkConfig(**TINY))(torch.randn(1, 4, 8, 8), torch.rand(1))


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match="no network size 'XXL'"):
        NetworkConfig.of("XXL")
