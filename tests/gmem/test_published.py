import argparse
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gmem import ldm
from gmem.network import Network
from gmem.published import (
    Mismatch,
    read_bank,
    read_latent_statistics,
    read_network,
    read_tokenizer,
    write_folder,
    write_latent_statistics,
    write_network,
)
from gmem.settings import NetworkConfig

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason=f"no golden numbers at {GOLDEN}")

CONFIG = NetworkConfig(
    5, 32, 2, patch=2, latent_channels=4, latent_size=8, snippet_dim=16, projection_dim=12, projection_hidden=24
)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network(CONFIG)


def saved(content, path: Path) -> Path:
    torch.save(content, path)
    return path


def golden_weights(name: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix("weights/"): v for k, v in load_file(GOLDEN / name).items() if k.startswith("weights/")}


# --- networks --------------------------------------------------------------------------------------------------------


@needs_golden
@torch.no_grad()
def test_the_golden_network_comes_out_of_its_file(tmp_path):
    golden = load_file(GOLDEN / "network_tiny.safetensors")
    path = saved({"model": {}, "ema": golden_weights("network_tiny.safetensors"), "config": {}}, tmp_path / "x.pt")
    found = read_network(path)
    assert (found.config.depth, found.config.width, found.config.heads, found.size) == (6, 96, 4, "6x96")
    velocity = found.build()(golden["input/latent"], golden["input/time"], golden["input/snippet"])
    assert (velocity - golden["output/velocity"]).abs().max() < 5e-6


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("form", ["checkpoint", "bare", "state_dict"])
def test_every_layout_is_read(tmp_path, network, prefix, form):
    weights = {prefix + name: value for name, value in network.state_dict().items()}
    content = {
        "checkpoint": {"ema": weights, "opt": {"lr": 1.0}},
        "bare": weights,
        "state_dict": {"state_dict": weights},
    }
    found = read_network(saved(content[form], tmp_path / "x.pth"))
    assert found.config == CONFIG
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in found.tensors.items())


def test_the_part_asked_for_is_taken(tmp_path, network):
    other = {name: value + 1 for name, value in network.state_dict().items()}
    path = saved({"ema": network.state_dict(), "model": other}, tmp_path / "x.pt")
    assert read_network(path).part == "ema"
    assert torch.equal(read_network(path, "model").tensors["pos_embed"], network.pos_embed + 1)


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(2, 32, 2, latent_channels=4, latent_size=4, conditioning="label", classes=3),
        NetworkConfig(2, 32, 4, latent_channels=4, latent_size=4, conditioning="none", prediction="data"),
        NetworkConfig(2, 32, 2, latent_channels=4, latent_size=4, snippet_dim=8, snippet_scale=3.0),
    ],
)
def test_variants_are_recognised(tmp_path, config):
    write_network(tmp_path / "x.pt", Network(config).state_dict(), config)
    found = read_network(tmp_path / "x.pt").config
    for field in ("conditioning", "classes", "heads", "prediction", "snippet_scale"):
        assert getattr(found, field) == getattr(config, field)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_export_gives_back_every_bit(tmp_path, network, dtype):
    weights = {name: value.to(dtype) for name, value in network.state_dict().items()}
    found = read_network(saved({"ema": weights}, tmp_path / "in.pt"))
    write_network(tmp_path / "out.pt", found.tensors, found.config, model=found.tensors)
    back = torch.load(tmp_path / "out.pt", weights_only=True)
    for part, prefix in (("ema", ""), ("model", "module.")):
        assert list(back[part]) == [prefix + name for name in weights]
        written = {name.removeprefix(prefix): value for name, value in back[part].items()}
        assert all(written[name].dtype == dtype and torch.equal(written[name], weights[name]) for name in weights)
        again = read_network(tmp_path / "out.pt", part)
        assert (again.part, again.config) == (part, CONFIG)
        assert all(torch.equal(again.tensors[name], weights[name]) for name in weights)


def test_an_exported_checkpoint_resumes_under_data_parallelism(tmp_path, network):
    """As the published trainer does: strictly, into the wrapped network."""
    write_network(tmp_path / "x.pt", dict(network.state_dict()), CONFIG, dict(network.state_dict()))
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    wrapped = torch.nn.Module()
    wrapped.module = Network(CONFIG)
    wrapped.load_state_dict(content["model"])
    Network(CONFIG).load_state_dict(content["ema"])


def test_a_folder_for_the_hub_is_written_and_read(tmp_path, network):
    write_folder(tmp_path / "hub", dict(network.state_dict()), CONFIG)
    assert read_network(tmp_path / "hub").config == CONFIG
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["_class_name"] == "GMemNetwork"
    with pytest.raises(ValueError, match=r"no readable config\.json"):
        read_network(tmp_path)


def test_missing_surplus_and_misshapen_tensors_are_counted_and_named(tmp_path, network):
    weights = dict(network.state_dict())
    for name in ("blocks.1.norm1.weight", "blocks.2.norm1.weight", "blocks.3.norm1.weight"):
        del weights[name]
    weights["extra"] = torch.zeros(1)
    weights["blocks.0.attn.proj.bias"] = torch.zeros(7)
    with pytest.raises(
        Mismatch, match=r"3 missing, 1 surplus, 1 of another shape tensors .*blocks\.1\.norm1\.weight"
    ) as caught:
        read_network(saved(weights, tmp_path / "x.pt"))
    assert len(caught.value.report) == 5
    assert caught.value.report[-1] == "of another shape: blocks.0.attn.proj.bias [7] instead of [32]"


def test_a_foreign_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a GMem network: 4 missing"):
        read_network(saved({"layer.weight": torch.zeros(3, 3)}, tmp_path / "x.pt"))
    with pytest.raises(ValueError, match="one tensor"):
        read_network(saved(torch.zeros(4, 4), tmp_path / "y.pt"))


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("blocks.999999999999.norm1.weight", torch.zeros(2), "not numbered from 0"),
        ("blocks.one.norm1.weight", torch.zeros(2), "not numbered from 0"),
        ("blocks.40.norm1.weight", torch.zeros(2), "not numbered from 0"),
        ("feat_rope.freqs_cos", torch.zeros(4, 0), r"freqs_cos \[4, 0\]"),
        ("x_embedder.proj.weight", torch.zeros(3), r"x_embedder\.proj\.weight \[3\]"),
        ("pos_embed", torch.zeros(1).expand(1, 10**6, 10**6), "more numbers than it holds"),
        ("pos_embed", torch.zeros(3, 3).to_sparse(), "no plain tensor"),
        ("n" * 10_000, torch.zeros(1), "1 surplus"),
    ],
)
def test_shapes_and_names_that_cannot_be(tmp_path, network, name, tensor, reason):
    with pytest.raises(ValueError, match=reason) as error:
        read_network(saved(dict(network.state_dict()) | {name: tensor}, tmp_path / "x.pt"))
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_nan_and_mixed_types_are_refused(tmp_path, network):
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    weights["final_layer.linear.bias"][0] = math.nan
    with pytest.raises(ValueError, match=r"1 tensors hold NaN or infinity \(final_layer\.linear\.bias\)"):
        read_network(saved(weights, tmp_path / "x.pt"))
    weights["final_layer.linear.bias"] = torch.zeros_like(weights["final_layer.linear.bias"]).half()
    with pytest.raises(ValueError, match=r"mixes weights of torch\.float16 and torch\.float32"):
        read_network(saved(weights, tmp_path / "y.pt"))


# --- files that are none ---------------------------------------------------------------------------------------------


class Code:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_file_that_holds_code_is_not_opened(tmp_path, network):
    path = saved({"ema": network.state_dict(), "callback": Code(tmp_path / "made")}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"more than tensors and plain values \(posix\.mkdir\)") as error:
        read_network(path)
    assert "torch.save(torch.load('x.pt', weights_only=False)['ema'], 'ema.pt')" in str(error.value)
    assert not (tmp_path / "made").exists()


def test_the_arguments_that_trainers_save_beside_the_weights_are_no_code(tmp_path, network):
    path = saved({"ema": network.state_dict(), "args": argparse.Namespace(lr=1, path_type="linear")}, tmp_path / "x.pt")
    assert read_network(path).config == CONFIG


def test_truncated_foreign_and_absent_files_give_a_sentence(tmp_path, network):
    whole = saved(network.state_dict(), tmp_path / "x.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    (tmp_path / "text.npy").write_text("not an array")
    for name in ("half.pt", "text.pt", "empty.pt", "text.safetensors", "text.npy"):
        with pytest.raises(ValueError, match=r"truncated or no file of tensors|more than tensors"):
            read_network(tmp_path / name)
    with pytest.raises(ValueError, match="there is no file"):
        read_network(tmp_path / "absent.pt")


# --- banks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["pt", "npy", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_bank_is_streamed(tmp_path, suffix, dtype):
    bank, path = torch.randn(100, 12).to(dtype), tmp_path / f"bank.{suffix}"
    if suffix == "pt":
        torch.save(bank, path)
    elif suffix == "npy":
        np.save(path, bank.numpy())
    else:
        save_file({"bank": bank}, path)
    found = read_bank(path)
    assert (found.rows, found.dim) == (100, 12)
    chunks = list(found.chunks(33))
    assert [len(chunk) for chunk in chunks] == [33, 33, 33, 1]
    assert torch.equal(torch.cat(chunks), bank)


def test_a_bank_from_before_zip_archives_is_read(tmp_path):
    bank = torch.randn(10, 4)
    torch.save(bank, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(torch.cat(list(read_bank(tmp_path / "old.pth").chunks())), bank)


def test_what_is_no_bank_is_refused(tmp_path, network):
    for content in (network.state_dict(), torch.zeros(3), torch.zeros(3, 4, dtype=torch.int64), torch.zeros(0, 4)):
        with pytest.raises(ValueError, match=r"a bank is one tensor \[N, D\]"):
            read_bank(saved(content, tmp_path / "x.pt"))
    bank = torch.zeros(50, 4)
    bank[41, 2] = math.inf
    with pytest.raises(ValueError, match="row 41"):
        list(read_bank(saved(bank, tmp_path / "y.pt")).chunks(20))


# --- latent statistics -----------------------------------------------------------------------------------------------


def test_latent_statistics_go_there_and_back(tmp_path):
    mean, std = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 3.0])
    write_latent_statistics(tmp_path / "stats.pt", mean, std)
    assert torch.load(tmp_path / "stats.pt", weights_only=True)["mean"].shape == (1, 2, 1, 1)
    again = read_latent_statistics(tmp_path / "stats.pt", channels=2)
    assert torch.equal(again[0], mean) and torch.equal(again[1], std)


def test_latent_statistics(tmp_path):
    path = saved({"mean": torch.arange(4.0).reshape(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1)}, tmp_path / "s.pt")
    mean, std = read_latent_statistics(path, channels=4)
    assert mean.tolist() == [0, 1, 2, 3] and std.tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="4 means and 4 deviations, but the latents have 8 channels"):
        read_latent_statistics(path, channels=8)
    with pytest.raises(ValueError, match="NaN, infinite or not positive"):
        read_latent_statistics(saved({"mean": torch.zeros(2), "std": torch.tensor([1.0, 0.0])}, tmp_path / "z.pt"))
    with pytest.raises(ValueError, match="`mean` and `std`"):
        read_latent_statistics(saved({"mean": torch.zeros(2)}, tmp_path / "m.pt"))


# --- tokenizers ------------------------------------------------------------------------------------------------------


@needs_golden
@torch.no_grad()
def test_the_golden_autoencoder_comes_out_as_diffusers(tmp_path):
    golden = load_file(GOLDEN / "vae_tiny.safetensors")
    weights = golden_weights("vae_tiny.safetensors")
    others = {"loss.discriminator.weight": torch.zeros(2), "foundation_model.blocks.0.weight": torch.zeros(2)}
    model = read_tokenizer(saved({"state_dict": weights | others, "epoch": 3}, tmp_path / "x.ckpt"))
    exact = model.double()  # the published numbers are float32 and 1.7e-5 from exact ones where pictures come out
    posterior = exact.encode(golden["input/image"].double()).latent_dist
    assert (posterior.parameters - golden["output/moments"]).abs().max() < 5e-6
    assert (exact.decode(posterior.mean).sample - golden["output/decoded_mean"]).abs().max() < 2e-5
    assert model.config.down_block_types[-1] == "AttnDownEncoderBlock2D"
    assert model.config.up_block_types[0] == "AttnUpDecoderBlock2D"


@needs_golden
def test_every_published_name_of_va_vae_has_its_place():
    published = json.loads((GOLDEN / "keys_VA-VAE-f16d32.json").read_text())
    with torch.device("meta"):
        from diffusers import AutoencoderKL

        tensors = {name: torch.empty(shape) for name, shape in published.items()}
        model = AutoencoderKL(**ldm.autoencoder_config(tensors))
    renamed = {name: value.shape for name, value in ldm.diffusers_names(tensors).items()}
    assert renamed == {name: value.shape for name, value in model.state_dict().items()}
    assert model.config.latent_channels == 32 and len(model.config.block_out_channels) == 5


def test_attention_in_one_half_alone(tmp_path):
    """MAR's KL-16 has attention at 16 cells in the encoder, and in the decoder none."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=2,
        latent_channels=4,
    ).eval()
    weights = published_names(model.state_dict(), levels=2)
    assert "encoder.down.1.attn.1.q.weight" in weights and "decoder.up.1.block.2.conv1.weight" in weights
    found = read_tokenizer(saved({"model": weights}, tmp_path / "kl16.ckpt"))
    assert found.config.down_block_types == ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
    assert found.config.up_block_types == ("UpDecoderBlock2D", "UpDecoderBlock2D")
    picture = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found.encode(picture).latent_dist.mean, model.encode(picture).latent_dist.mean)
        latent = torch.rand(1, 4, 16, 16)
        assert torch.equal(found.decode(latent).sample, model.decode(latent).sample)


def published_names(tensors, levels):
    """The inverse of `ldm.diffusers_names`, for what a small autoencoder has."""
    changes = [
        (r"mid_block\.resnets\.0\.", "mid.block_1."),
        (r"mid_block\.resnets\.1\.", "mid.block_2."),
        (r"mid_block\.attentions\.0\.", "mid.attn_1."),
        (r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)\.", r"\1.\2.block.\3."),
        (r"down_blocks\.(\d+)\.attentions\.(\d+)\.", r"down.\1.attn.\2."),
        (r"(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.", r"\1.\2.\3sample."),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
        (r"group_norm", "norm"),
        (r"to_([qkv])\.", r"\1."),
        (r"to_out\.0\.", "proj_out."),
        (r"\bup\.(\d+)\.", lambda found: f"up.{levels - 1 - int(found[1])}."),
    ]
    renamed = {}
    for name, value in tensors.items():
        for pattern, replacement in changes:
            name = re.sub(pattern, replacement, name)
        is_convolution = re.search(r"attn_?\d*\.(\d+\.)?(q|k|v|proj_out)\.weight$", name)
        renamed[name] = value[:, :, None, None] if is_convolution else value
    return renamed


@needs_golden
def test_a_broken_autoencoder_is_refused(tmp_path):
    weights = golden_weights("vae_tiny.safetensors")
    del weights["decoder.mid.block_1.norm1.bias"]
    with pytest.raises(Mismatch, match=r"1 missing tensors \(missing: decoder\.mid_block\.resnets\.0\.norm1\.bias\)"):
        read_tokenizer(saved(weights, tmp_path / "x.pt"))
    with pytest.raises(ValueError, match=r"not a latent-diffusion autoencoder: tensor 'encoder\.down"):
        read_tokenizer(saved({"layer": torch.zeros(1)}, tmp_path / "y.pt"))
    weights = golden_weights("vae_tiny.safetensors")
    weights["decoder.conv_out.bias"] = torch.full_like(weights["decoder.conv_out.bias"], math.nan)
    with pytest.raises(ValueError, match=r"1 tensors hold NaN or infinity \(decoder\.conv_out\.bias\)"):
        read_tokenizer(saved(weights, tmp_path / "z.pt"))
    weights["decoder.conv_out.bias"] = torch.zeros(3, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"mixes weights of torch\.float16 and torch\.float32"):
        read_tokenizer(saved(weights, tmp_path / "m.pt"))


@pytest.mark.parametrize("read", [read_bank, read_latent_statistics, read_tokenizer])
def test_whatever_is_truncated_gives_a_sentence(tmp_path, read):
    whole = saved({"mean": torch.rand(4, 400), "std": torch.rand(4, 400)}, tmp_path / "x.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    np.save(tmp_path / "x.npy", np.zeros((50, 40)))
    (tmp_path / "half.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:9000])
    for name in ("half.pt", "half.npy"):
        with pytest.raises(ValueError, match="truncated or no file of tensors") as error:
            read(tmp_path / name)
        assert "\n" not in str(error.value)
