import dataclasses
import functools
import json
import math

import pytest
import torch

from gmem import threads
from gmem.batch import Batch, Draws, draw
from gmem.learner import Learner
from gmem.memory import Components
from gmem.network import Network
from gmem.parallel import Alone
from gmem.settings import LearnerConfig, NetworkConfig

SHAPE, SNIPPET, TOKENS = (4, 4, 4), 16, 24
CONFIG = LearnerConfig(lr=1e-2, precision="fp32", seed=3, drop=0.2, warmup=2)


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small lose more by waiting for a second thread than it gives."""
    with threads.one_thread():
        yield


def make_network(depth: int = 2, **rest) -> Network:
    torch.manual_seed(0)
    values = {"projection_dim": TOKENS, "projection_hidden": 32, "projection_after": 1} | rest
    return Network(NetworkConfig(depth, 32, 2, latent_channels=4, latent_size=4, snippet_dim=SNIPPET, **values))


def make_batch(count: int, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(count, *SHAPE, generator=g),
        torch.randn(count, SNIPPET, generator=g),
        torch.randn(count, 16, TOKENS, generator=g),
    )


def run(learner: Learner, first: int, last: int, count: int = 8) -> list[dict[str, float]]:
    rows = slice(0, count)
    return [
        learner.step(make_batch(count, s), draw(learner.config.seed, s, count, SHAPE, SNIPPET, rows, tokens=16), count)
        for s in range(first, last)
    ]


def test_training_lowers_the_loss_and_reports_its_parts():
    learner = Learner(make_network(), CONFIG)
    batch, draws = make_batch(16), draw(CONFIG.seed, 0, 16, SHAPE, SNIPPET, slice(None))
    results = [learner.step(batch, draws, 16) for _ in range(25)]
    assert results[-1]["total"] < 0.7 * results[0]["total"]
    assert results[0]["lr"] == pytest.approx(CONFIG.lr / 2) and results[5]["lr"] == CONFIG.lr
    last = results[-1]
    assert last["total"] == pytest.approx(last["velocity"] + last["cosine"] + 0.5 * last["projection"], rel=1e-5)


def test_the_learning_rate_falls_with_the_root_of_the_steps():
    config = dataclasses.replace(CONFIG, warmup=2, decay_after=3)
    rates = [each["lr"] / CONFIG.lr for each in run(Learner(make_network(), config), 0, 12)]
    assert rates[:3] == pytest.approx([0.5, 1, 1])
    assert rates[3:] == pytest.approx([math.sqrt(3 / step) for step in range(4, 13)])


@pytest.mark.parametrize(
    "changed", [{}, {"decay_after": 2}, {"emas": (0.3, 0.9)}, {"route": 0.5}, {"optimiser": "muon"}]
)
def test_resume_is_exact(changed):
    config = dataclasses.replace(CONFIG, **changed)
    straight = Learner(make_network(3), config)
    run(straight, 0, 6)
    first = Learner(make_network(3), config)
    run(first, 0, 3)
    tensors, progress = first.state()
    tensors = {name: value.clone() for name, value in tensors.items()}
    second = Learner(make_network(3), config)
    second.load_state(tensors, json.loads(json.dumps(progress)))
    run(second, second.steps, 6)
    assert second.steps == 6
    for name, value in straight.state()[0].items():
        assert torch.equal(value, second.state()[0][name]), name


def test_state_before_the_first_step_can_be_loaded():
    learner = Learner(make_network(), CONFIG)
    tensors, progress = Learner(make_network(), CONFIG).state()
    learner.load_state({name: value.clone() for name, value in tensors.items()}, progress)
    run(learner, 0, 1)


def test_uneven_shares_add_up_to_the_whole_batch():
    batch, draws = make_batch(7), draw(CONFIG.seed, 0, 7, SHAPE, SNIPPET, slice(None))
    whole = Learner(make_network(), CONFIG)
    total = whole.step(batch, draws, 7)
    gradient = {name: p.grad.clone() for name, p in whole.network.named_parameters() if p.grad is not None}
    scale = min(1, CONFIG.clip / total["grad_norm"])
    summed, losses = {}, 0.0
    for rows in (slice(0, 5), slice(5, 7), slice(7, 7)):
        share = Learner(make_network(), dataclasses.replace(CONFIG, clip=float("inf")))
        part = Batch(*(x if x is None else x[rows] for x in batch))
        losses += share.step(part, Draws(*(x[rows] for x in draws)), 7)["total"]
        for name, p in share.network.named_parameters():
            if p.grad is not None:
                summed[name] = summed.get(name, 0) + p.grad
    assert losses == pytest.approx(total["total"], rel=1e-5)
    for name, value in gradient.items():
        torch.testing.assert_close(summed[name] * scale, value, atol=1e-6, rtol=1e-4)


def test_micro_batches_change_nothing_but_rounding():
    whole, pieces = (Learner(make_network(), CONFIG, micro_batch=m) for m in (0, 3))
    a, b = run(whole, 0, 2), run(pieces, 0, 2)
    assert a[-1] == pytest.approx(b[-1], rel=1e-4)


def test_blocks_that_are_computed_again_keep_less_and_train_to_the_same_bits():
    def kept(learner: Learner) -> int:
        tensors = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensors.append(tensor) or tensor, lambda x: x):
            run(learner, 0, 1)
        return sum(tensor.nbytes for tensor in tensors)

    plain, again = Learner(make_network(), CONFIG), Learner(make_network(), CONFIG, recompute=True)
    assert kept(again) < 0.7 * kept(plain)
    assert run(plain, 1, 4) == run(again, 1, 4)
    for name, value in plain.state()[0].items():
        assert torch.equal(value, again.state()[0][name]), name


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_change_nothing_but_rounding(monkeypatch, recompute):
    plain = run(Learner(make_network(), CONFIG), 0, 2)
    traced = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)  # all but writing and compiling C++
    monkeypatch.setattr(torch, "compile", traced)
    learner = Learner(make_network(), CONFIG, compile=True, recompute=recompute)
    torch._dynamo.utils.counters.clear()
    compiled = run(learner, 0, 2)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert [pytest.approx(step, rel=1e-4, abs=1e-6) for step in plain] == compiled
    assert learner.state()[0].keys() == Learner(make_network(), CONFIG).state()[0].keys() | {
        n for n in learner.state()[0] if n.startswith("optimiser.")
    }


def test_a_step_that_is_not_finite_is_skipped():
    learner = Learner(make_network(), CONFIG)
    run(learner, 0, 1)
    before = {name: value.clone() for name, value in learner.state()[0].items()}
    bad = make_batch(8)
    bad.latent[3, 0, 0, 0] = math.nan
    result = learner.step(bad, draw(CONFIG.seed, 1, 8, SHAPE, SNIPPET, slice(None)), 8)
    assert result["skipped"] == 1
    assert all(torch.equal(value, before[name]) for name, value in learner.state()[0].items())
    assert (learner.steps, learner.updates) == (2, 1)
    assert run(learner, 2, 3)[0]["skipped"] == 0


def test_a_step_above_the_limit_is_skipped():
    learner = Learner(make_network(), CONFIG)
    before = {name: value.clone() for name, value in learner.state()[0].items()}
    batch, draws = make_batch(8), draw(CONFIG.seed, 0, 8, SHAPE, SNIPPET, slice(0, 8))
    loss = learner.step(batch, draws, 8, limit=0.0)
    assert loss["skipped"] == 1 and (learner.steps, learner.updates) == (1, 0)
    assert all(torch.equal(value, before[name]) for name, value in learner.state()[0].items())
    assert learner.step(batch, draws, 8, limit=loss["velocity"])["skipped"] == 0


def test_average_follows_at_first_and_settles_on_its_decay():
    learner = Learner(make_network(), dataclasses.replace(CONFIG, ema=0.5, ema_ramp=10))
    start = learner.ema.final_layer.linear.weight.clone()
    run(learner, 0, 1)
    decay = 2 / 11
    expected = decay * start + (1 - decay) * learner.network.final_layer.linear.weight
    torch.testing.assert_close(learner.ema.final_layer.linear.weight, expected.detach())
    run(learner, 1, 12)
    before = learner.ema.final_layer.linear.weight.clone()
    run(learner, 12, 13)
    expected = 0.5 * before + 0.5 * learner.network.final_layer.linear.weight
    torch.testing.assert_close(learner.ema.final_layer.linear.weight, expected.detach())


def test_each_average_is_the_one_that_a_training_of_its_own_would_keep():
    several = Learner(make_network(), dataclasses.replace(CONFIG, ema=0.5, emas=(0.9, 0.2, 0.5)))
    run(several, 0, 12)
    kept = several.state()[0]
    assert {name.partition(".")[0] for name in kept} == {"network", "ema", "ema_9", "ema_2", "optimiser"}
    for decay, group in ((0.5, "ema"), (0.9, "ema_9"), (0.2, "ema_2")):
        alone = Learner(make_network(), dataclasses.replace(CONFIG, ema=decay))
        run(alone, 0, 12)
        for name, value in alone.ema.state_dict().items():
            assert torch.equal(value, kept[f"{group}.{name}"]), (group, name)


def test_routing_changes_training_and_not_what_is_measured():
    plain, routed = (Learner(make_network(3), dataclasses.replace(CONFIG, route=route)) for route in (0.0, 0.5))
    batch, draws = make_batch(8), draw(CONFIG.seed, 9, 8, SHAPE, SNIPPET, slice(None))
    assert plain.loss(batch, draws) == routed.loss(batch, draws)
    first, other = run(plain, 0, 1)[0], run(routed, 0, 1)[0]
    assert first["velocity"] != other["velocity"] and first["projection"] == other["projection"]
    with pytest.raises(ValueError, match=r"draw.* a number for each token"):
        routed.step(batch, draws, 8)
    with pytest.raises(ValueError, match=r"train\.route needs blocks between .* of the network's 2 there is none"):
        Learner(make_network(), dataclasses.replace(CONFIG, route=0.5))


def test_muon_lowers_the_loss_and_is_refused_where_matrices_are_cut():
    learner = Learner(make_network(), dataclasses.replace(CONFIG, optimiser="muon"))
    batch, draws = make_batch(16), draw(CONFIG.seed, 0, 16, SHAPE, SNIPPET, slice(None))
    results = [learner.step(batch, draws, 16) for _ in range(25)]
    assert results[-1]["total"] < 0.7 * results[0]["total"]
    cut = Alone()
    cut.sharded = True
    with pytest.raises(ValueError, match=r"^train\.optimiser muon needs whole matrices.*; use adamw, or do not shard$"):
        Learner(make_network(), learner.config, parallel=cut)


def test_bf16_stays_close_to_fp32():
    losses = [run(Learner(make_network(), dataclasses.replace(CONFIG, precision=p)), 0, 1)[0] for p in ("fp32", "bf16")]
    assert losses[0]["velocity"] == pytest.approx(losses[1]["velocity"], rel=0.02)


def test_held_out_loss_uses_the_average_and_changes_nothing():
    learner = Learner(make_network(), CONFIG)
    run(learner, 0, 3)
    before = {name: value.clone() for name, value in learner.state()[0].items()}
    batch, draws = make_batch(8), draw(CONFIG.seed, 0, 8, SHAPE, SNIPPET, slice(None))
    last = Learner(make_network(), dataclasses.replace(CONFIG, ema=0.0))  # its average is its newest weights
    run(last, 0, 3)
    assert learner.loss(batch, draws)["total"] != last.loss(batch, draws)["total"]
    assert all(torch.equal(value, before[name]) for name, value in learner.state()[0].items())


def test_alignment_needs_tokens_unless_its_weight_is_zero():
    batch, draws = make_batch(4)._replace(tokens=None), draw(CONFIG.seed, 0, 4, SHAPE, SNIPPET, slice(None))
    with pytest.raises(ValueError, match="patch tokens"):
        Learner(make_network(), CONFIG).step(batch, draws, 4)
    learner = Learner(make_network(), dataclasses.replace(CONFIG, align=0.0))
    assert learner.step(batch, draws, 4)["projection"] == 0


@pytest.mark.parametrize("patch", [1, 2])
def test_tokens_may_come_as_coefficients(patch):
    """The loss is that of full tokens, also where the network's grid is coarser than theirs."""
    components = Components(torch.randn(TOKENS), torch.linalg.qr(torch.randn(TOKENS, 5)).Q.T.contiguous())
    batch, draws = make_batch(4), draw(CONFIG.seed, 0, 4, SHAPE, SNIPPET, slice(None))
    codes = components.project(batch.tokens)
    full = Learner(make_network(patch=patch), CONFIG).step(
        batch._replace(tokens=components.reconstruct(codes)), draws, 4
    )
    coded = Learner(make_network(patch=patch), CONFIG, components=components).step(
        batch._replace(tokens=codes), draws, 4
    )
    assert coded == pytest.approx(full, rel=1e-5)


def test_labels_and_data_prediction_train():
    network = make_network(conditioning="label", classes=3, projection_dim=0, prediction="data")
    learner = Learner(network, CONFIG)
    batch = make_batch(8)._replace(label=torch.arange(8) % 3 - 1, tokens=None)  # every third has none
    draws = draw(CONFIG.seed, 0, 8, SHAPE, SNIPPET, slice(None))
    results = [learner.step(batch, draws, 8) for _ in range(15)]
    assert results[-1]["velocity"] < results[0]["velocity"]


def test_a_checkpoint_of_another_network_is_refused():
    tensors, progress = Learner(make_network(), CONFIG).state()
    with pytest.raises(ValueError, match="another network: 12 tensors"):
        Learner(make_network(projection_dim=0), CONFIG).load_state(tensors, progress)


@pytest.mark.parametrize("values", [{"mask": 1.0}, {"lr": 0.0}, {"clip": -1.0}, {"seed": -1}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        LearnerConfig(**values)


def test_it_can_begin_again():
    config = dataclasses.replace(CONFIG, emas=(0.5,))
    learner, other = Learner(make_network(), config), Learner(make_network(), config)
    run(learner, 0, 2)
    learner.restart(make_network())
    assert run(learner, 0, 2) == run(other, 0, 2) and learner.steps == 2
    for name, value in other.state()[0].items():
        assert torch.equal(value, learner.state()[0][name]), name
