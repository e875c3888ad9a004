from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from gmem import threads
from gmem.network import Network
from gmem.sampler import _Guided, noise_for, sample
from gmem.settings import Diffusion, Last, Method, NetworkConfig, SamplerConfig

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason=f"no golden numbers at {GOLDEN}")

MEAN, STD = 0.7, 0.5


def gaussian_velocity(x, t, snippet=None, label=None):
    """The exact velocity when every number of a latent is drawn from N(0.7, 0.5²)."""
    t = t[:, None, None, None]
    s = 1 - t
    return MEAN + (t * STD**2 - s) / ((t * STD) ** 2 + s**2) * (x - t * MEAN)


def constant_velocity(value):
    return lambda x, t, snippet, label: torch.full_like(x, value)


@pytest.fixture(autouse=True)
def one_thread():
    """Latents this small lose more by waiting for a second thread than it gives."""
    with threads.one_thread():
        yield


@pytest.fixture(scope="module")
def golden_network() -> Network:
    weights = load_file(GOLDEN / "network_tiny.safetensors")
    network = Network(NetworkConfig(6, 96, 4, latent_channels=8, latent_size=4, projection_dim=768))
    network.load_state_dict({k.removeprefix("weights/"): v.float() for k, v in weights.items() if "weights/" in k})
    return network.eval()


@needs_golden
@pytest.mark.parametrize(
    ("name", "config", "calls"),
    [
        ("ode_euler_n8_shift0.0", SamplerConfig("ode", "euler", 8), 7),
        ("ode_euler_n8_shift0.3", SamplerConfig("ode", "euler", 8, shift=0.3), 7),
        ("sde_euler_n8_last_none", SamplerConfig("sde", "euler", 8, last="none"), 7),
        ("sde_euler_n8_last_mean", SamplerConfig("sde", "euler", 8, last="mean"), 8),
        ("sde_euler_n8_last_euler", SamplerConfig("sde", "euler", 8, last="euler"), 8),
        ("sde_heun_n8_last_mean", SamplerConfig("sde", "heun", 8, last="mean"), 15),
        ("sde_heun_n8_last_euler", SamplerConfig("sde", "heun", 8, last="euler"), 15),
    ],
)
def test_published_samples(golden_network, name, config, calls):
    golden = load_file(GOLDEN / "samplers_tiny.safetensors")
    wiener = golden["input/wiener_noise"]
    made = sample(
        golden_network, golden["input/noise"], golden["input/snippet"], config, wiener=lambda step: wiener[step]
    )
    assert (made.latent - golden[name]).abs().max() < 5e-6
    assert made.calls == calls


@needs_golden
def test_published_dopri5(golden_network):
    """The published solver judges the batch as one, so here both samples are given as one with twice the channels."""
    golden = load_file(GOLDEN / "samplers_tiny.safetensors")
    snippet = golden["input/snippet"]

    def joint(x, t, *_):
        return golden_network(x.reshape(2, 8, 4, 4), t.expand(2), snippet).reshape(1, 16, 4, 4)

    made = sample(joint, golden["input/noise"].reshape(1, 16, 4, 4), None, SamplerConfig("ode", "dopri5"))
    assert (made.latent.reshape(2, 8, 4, 4) - golden["ode_dopri5_n8"]).abs().max() < 1e-5
    assert made.calls == 20


@needs_golden
def test_heun_without_a_last_step_is_finite_where_the_published_code_divides_by_zero(golden_network):
    golden = load_file(GOLDEN / "samplers_tiny.safetensors")
    assert golden["sde_heun_n8_last_none"].isnan().all()
    config = SamplerConfig("sde", "heun", 8, last="none")
    made = sample(golden_network, golden["input/noise"], golden["input/snippet"], config)
    assert made.latent.isfinite().all()


@needs_golden
@pytest.mark.parametrize(("t", "name"), [(0.50, "guidance/velocity_t0.50"), (0.95, "guidance/velocity_t0.95")])
def test_published_guidance_with_its_interval(golden_network, t, name):
    golden = load_file(GOLDEN / "network_tiny.safetensors")
    config = SamplerConfig(guidance=2.5, guidance_from=0.89)
    guided = _Guided(golden_network, golden["input/snippet"], None, config, None, len(golden["input/latent"]))
    with torch.no_grad():
        assert (guided(golden["input/latent"], t) - golden[name]).abs().max() < 1e-5
    assert guided.calls.max() == (1 if t < 0.89 else 2)


@pytest.mark.parametrize("diffusion", get_args(Diffusion))
@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("last", get_args(Last))
def test_every_sde_reaches_the_data(diffusion, method, last):
    config = SamplerConfig("sde", method, 50, diffusion=diffusion, last=last)
    made = sample(gaussian_velocity, noise_for(0, range(64), (1, 8, 8)), None, config).latent
    assert made.mean() == pytest.approx(MEAN, abs=0.03)
    assert made.std() == pytest.approx(STD, abs=0.025)


@pytest.mark.parametrize("diffusion", ["constant", "SBDM"])
def test_the_forms_that_break_as_published_work_with_few_steps_too(diffusion):
    config = SamplerConfig("sde", "heun", 8, diffusion=diffusion)
    made = sample(gaussian_velocity, noise_for(0, range(64), (1, 8, 8)), None, config).latent
    assert made.std() == pytest.approx(STD, abs=0.1)


@pytest.mark.parametrize("method", get_args(Method))
def test_the_ode_carries_each_sample_along_its_path(method):
    noise = noise_for(1, range(4), (1, 8, 8))
    made = sample(gaussian_velocity, noise, None, SamplerConfig("ode", method, 200, rtol=1e-5, atol=1e-7)).latent
    torch.testing.assert_close(made, MEAN + STD * noise, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("config", "calls"),
    [
        (SamplerConfig(), 99),
        (SamplerConfig("ode", "euler"), 49),
        (SamplerConfig("ode", "heun"), 98),
        (SamplerConfig("ode", "multistep", 9), 8),
        (SamplerConfig("ode", "euler", 5, guidance=2.0), 8),
        (SamplerConfig("ode", "euler", 5, guidance=2.0, guidance_from=0.5), 6),
    ],
)
def test_calls_are_counted(config, calls):
    counted = 0

    def network(x, *rest):
        nonlocal counted
        counted += len(x) / 2
        return gaussian_velocity(x, *rest)

    assert sample(network, torch.zeros(2, 1, 2, 2), None, config).calls == calls == counted


@pytest.mark.parametrize(
    "config",
    [
        SamplerConfig(steps=6),
        SamplerConfig("ode", "dopri5"),
        SamplerConfig("ode", "dopri5", guidance=4.0, guidance_from=0.3, guidance_until=0.6),
    ],
)
def test_a_sample_does_not_depend_on_its_batch(config):
    torch.manual_seed(0)
    network = Network(NetworkConfig(2, 32, 2, latent_channels=4, latent_size=4, snippet_dim=16)).eval()
    snippets = torch.nn.functional.normalize(torch.randn(6, 16), dim=1)
    whole = sample(network, noise_for(5, range(6), (4, 4, 4)), snippets, config, seed=5).latent
    for rows in ([4, 1], [0], [5, 3, 2]):
        noise = noise_for(5, torch.tensor(rows), (4, 4, 4))
        part = sample(network, noise, snippets[rows], config, seed=5, indices=torch.tensor(rows)).latent
        # Rounding differs in batches of another size, and an adaptive solver chooses its steps by it, within its tolerance.
        allowed = config.rtol if config.method == "dopri5" else 1e-5
        torch.testing.assert_close(part, whole[rows], atol=allowed, rtol=allowed)


def test_less_precise_products_give_nearly_the_same_samples():
    torch.manual_seed(0)
    network = Network(NetworkConfig(2, 32, 2, latent_channels=4, latent_size=4, snippet_dim=16)).eval()
    noise, snippets = noise_for(0, range(3), (4, 4, 4)), torch.nn.functional.normalize(torch.randn(3, 16), dim=1)
    full, half = (
        sample(network, noise, snippets, SamplerConfig(steps=6, precision=precision)).latent
        for precision in ("fp32", "bf16")
    )
    assert full.dtype == half.dtype == torch.float32
    assert 1e-5 < (full - half).abs().max() < 0.05


@pytest.mark.parametrize(("start", "until"), [(0.0, 1.0), (0.0, 0.4), (0.25, 0.4), (0.25, 1.0)])
def test_calls_and_samples_do_not_depend_on_the_batch_either(start, until):
    """Not where the solver takes steps of each sample's own, and guidance begins and ends."""

    def network(x, t, snippet, label):
        bend = snippet[:, :1, None, None]
        return torch.sin(bend * t[:, None, None, None]).expand_as(x) - x

    config = SamplerConfig("ode", "dopri5", guidance=2.0, guidance_from=start, guidance_until=until)
    snippets, noise = torch.tensor([[0.0], [3.0], [30.0], [90.0]]), noise_for(0, range(4), (1, 2, 2))
    alone = [sample(network, noise[i : i + 1], snippets[i : i + 1], config) for i in range(4)]
    assert len({made.calls for made in alone}) > 1
    for rows in ([0, 1, 2, 3], [3, 0], [0, 1]):
        made = sample(network, noise[rows], snippets[rows], config)
        assert made.calls == max(alone[i].calls for i in rows)
        assert torch.equal(made.latent, torch.cat([alone[i].latent for i in rows]))


@pytest.mark.parametrize(("start", "until"), [(0.0, 1.0), (0.25, 0.75), (0.25, 1.0), (0.5, 0.5)])
def test_dopri5_meets_the_ends_of_the_guidance_exactly(start, until):
    """A step over the jump would be off by its tolerance of a thousandth."""
    conditional, other = [], []

    def network(x, t, snippet, label):
        conditional.extend(t[snippet.any(dim=1)])
        other.extend(t[~snippet.any(dim=1)])
        return snippet.any(dim=1).float()[:, None, None, None].expand_as(x)

    config = SamplerConfig("ode", "dopri5", guidance=3.0, guidance_from=start, guidance_until=until)
    made = sample(network, torch.zeros(1, 1, 1, 1), torch.ones(1, 4), config)
    assert made.latent.item() == pytest.approx(1 + 2 * (until - start), rel=1e-5)
    assert made.calls == len(conditional) + len(other)
    assert bool(other) == (start < until) and (len(other) < len(conditional)) == (until - start < 1)


@pytest.mark.parametrize(("shift", "share"), [(0.5, 0.3), (1.0, 0.5), (2.0, 0.2)])
def test_the_point_before_brings_few_calls_nearer_to_the_path_and_many_by_the_second_order(shift, share):
    noise = noise_for(1, range(4), (1, 8, 8))

    def off(method, calls):
        config = SamplerConfig("ode", method, calls + 1, shift=shift)
        return float((sample(gaussian_velocity, noise, None, config).latent - MEAN - STD * noise).abs().mean())

    assert off("multistep", 4) < share * off("euler", 4)
    assert off("multistep", 64) < 0.35 * off("multistep", 32)


def test_data_that_is_foretold_alike_is_reached_in_any_number_of_steps():
    def straight(x, t, *_):
        return (3 - x) / (1 - t)[:, None, None, None]

    for method in ("euler", "multistep"):
        made = sample(straight, torch.randn(2, 1, 2, 2), None, SamplerConfig("ode", method, 6)).latent
        torch.testing.assert_close(made, torch.full_like(made, 3.0))


def test_nothing_is_extrapolated_over_an_end_of_the_guidance():
    def network(x, t, snippet, label):
        data = torch.full_like(x, 1.0 if snippet is None else 2.0)
        return (data - x) / (1 - t)[:, None, None, None]

    config = SamplerConfig("ode", "multistep", 9, guidance=3.0, guidance_from=0.25, guidance_until=0.5)
    plain = replace(config, method="euler")
    made, wanted = (sample(network, torch.ones(1, 1, 1, 1), torch.ones(1, 4), each) for each in (config, plain))
    torch.testing.assert_close(made.latent, wanted.latent)


def test_guidance_outside_its_interval_is_conditional():
    def network(x, t, snippet, label):
        return snippet.any(dim=1).float()[:, None, None, None].expand_as(x)

    config = SamplerConfig("ode", "euler", 11, guidance=3.0, guidance_from=0.25, guidance_until=0.65)
    made = sample(network, torch.zeros(1, 1, 1, 1), torch.ones(1, 4), config)
    assert made.latent.item() == pytest.approx(0.6 * 1 + 0.4 * 3, rel=1e-5)  # guided at 0.3, 0.4, 0.5, 0.6


def test_both_branches_of_guidance_go_through_the_network_together_and_only_inside_the_interval():
    batches = []

    def network(x, t, snippet, label):
        batches.append((len(x), bool(snippet[-1].any()), label.tolist()))
        return torch.zeros_like(x)

    config = SamplerConfig("ode", "euler", 5, guidance=3.0, guidance_from=0.2, guidance_until=0.6)
    sample(network, torch.zeros(2, 1, 1, 1), torch.ones(2, 4), config, label=torch.tensor([7, 8]))
    alone, both = (2, True, [7, 8]), (4, False, [7, 8, -1, -1])
    assert batches == [alone, both, both, alone]


def test_samples_that_have_arrived_leave_the_batch():
    sizes = []

    def network(x, t, snippet, label):
        sizes.append(len(x))
        assert len(t) == len(snippet) == len(label) == len(x)
        return torch.sin(snippet[:, :1, None, None] * t[:, None, None, None]).expand_as(x) - x

    snippets, noise = torch.tensor([[90.0], [0.0], [30.0], [3.0]]), noise_for(0, range(4), (1, 2, 2))
    made = sample(network, noise, snippets, SamplerConfig("ode", "dopri5"), label=torch.arange(4))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 4 and sizes[-1] == 1
    assert made.calls == len(sizes)  # the one that took longest was in all of them


def test_autoguidance_moves_away_from_the_guide():
    config = SamplerConfig("ode", "euler", 11, guidance=2.0)
    made = sample(
        constant_velocity(1.0), torch.zeros(1, 1, 1, 1), torch.ones(1, 4), config, guide=constant_velocity(0.25)
    )
    assert made.latent.item() == pytest.approx(1.75, rel=1e-5)
    assert made.calls == 20


def test_dopri5_says_when_the_velocity_is_not_finite():
    def stormy(x, t, *_):
        return torch.full_like(x, float("nan"))

    with pytest.raises(ValueError, match="NaN or infinite"):
        sample(stormy, torch.zeros(1, 1, 1, 1), None, SamplerConfig("ode", "dopri5"))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"kind": "sde", "method": "dopri5"}, "for sample.kind ode"), ({"kind": "sde", "method": "multistep"}, "multistep is for sample.kind ode"), ({"steps": 1}, "at least 2"), ({"shift": 0.0}, "more than 0"),
        ({"last_size": 0.0}, "more than 0"), ({"diffusion_norm": -1.0}, "at least 0"), ({"guidance_from": 0.5, "guidance_until": 0.2}, "exchange"), ({"rtol": 0.0}, "more than 0"), ({"last_size": float("nan")}, "more than 0 and give less than 1"), ({"diffusion": "quadratic"}, "use one of constant"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        SamplerConfig(**values)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (SamplerConfig("ode", "euler", shift=0.3), "ode euler shift 0.3"),
        (SamplerConfig(), "sde heun shift 1 diffusion linear norm 1 last mean 0.004"),
        (SamplerConfig(last="none"), "sde heun shift 1 diffusion linear norm 1 last none"),
        (SamplerConfig("ode", "dopri5"), "ode dopri5 rtol 0.001 atol 1e-06"),
    ],
)
def test_a_sampler_is_named_with_all_that_moves_its_samples(config, text):
    assert config.summary() == text


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (SamplerConfig("ode", "heun"), {"kind": "sde", "method": "euler", "shift": 0.5}),
        (SamplerConfig("ode", "dopri5"), {"rtol": 1e-4, "atol": 1e-5, "precision": "tf32"}),
        (SamplerConfig(), {"shift": 0.5, "diffusion": "sigma", "diffusion_norm": 2.0, "last": "euler", "last_size": 0.04}),
    ],
)  # fmt: skip
def test_another_setting_is_another_sampler(base, changes):
    assert all(replace(base, **{name: value}).summary() != base.summary() for name, value in changes.items())
