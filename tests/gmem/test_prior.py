"""The distribution of snippets, learned and drawn from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gmem.memory import normalise
from gmem.prior import Prior, PriorLearner, PriorShape, draw, load_prior, shape_of
from gmem.settings import PriorConfig
from gmem.threads import one_thread

SMALL = PriorConfig(width=64, depth=2, batch=128, lr=3e-3, ema=0.98)


def clusters(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Snippets [N, 8] around one direction for each of 3 classes, their labels, and the directions [3, 8]."""
    generator = torch.Generator().manual_seed(seed)
    directions = normalise(torch.randn(3, 8, generator=torch.Generator().manual_seed(99)))
    labels = torch.randint(3, (count,), generator=generator)
    snippets = directions[labels] + 0.05 * torch.randn(count, 8, generator=generator)
    return 7 * snippets.half(), labels, directions


@pytest.fixture(scope="module")
def learned() -> PriorLearner:
    snippets, labels, _ = clusters(600, 0)
    learner = PriorLearner(snippets, labels, SMALL)
    with one_thread():
        for _ in range(400):
            learner.step()
    return learner


def test_each_class_is_drawn_where_it_lies_and_no_class_among_all(learned: PriorLearner) -> None:
    prior, (_, _, directions) = learned.averaged(), clusters(1, 0)
    for label in range(3):
        near = draw(prior, 64, seed=1, label=label) @ directions.T
        assert (near.argmax(1) == label).float().mean() > 0.95 and near[:, label].median() > 0.95
    counts = (draw(prior, 300, seed=2) @ directions.T).argmax(1).bincount(minlength=3)
    assert counts.min() > 50


def test_held_out_snippets_are_as_likely_as_those_it_learned_from(learned: PriorLearner) -> None:
    seen, unseen = clusters(600, 0), clusters(600, 1)
    fresh = PriorLearner(*seen[:2], SMALL)
    loss = learned.held_out_loss(*unseen[:2])
    assert loss < 0.7 * fresh.held_out_loss(*unseen[:2])
    assert loss == pytest.approx(learned.held_out_loss(*seen[:2]), rel=0.15)


def test_what_is_drawn_is_a_function_of_seed_and_number(learned: PriorLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = learned.averaged()
    many = draw(prior, 10, seed=3)
    assert torch.allclose(draw(prior, 4, seed=3), many[:4], atol=1e-5) and not torch.allclose(
        draw(prior, 4, 4), many[:4]
    )
    monkeypatch.setattr("gmem.prior.DRAWN_TOGETHER", 3)
    assert torch.allclose(draw(prior, 10, seed=3), many, atol=1e-5)
    assert torch.allclose(many.norm(dim=1), torch.ones(10)) and draw(prior, 0, 0).shape == (0, 8)


def test_an_interrupted_training_ends_with_the_same_bits() -> None:
    data = clusters(100, 0)[:2]
    with one_thread():
        whole, first = PriorLearner(*data, SMALL), PriorLearner(*data, SMALL)
        losses = [whole.step() for _ in range(6)]
        begun = [first.step() for _ in range(3)]
        second = PriorLearner(*data, SMALL)
        second.load_state(*first.state())
        assert begun + [second.step() for _ in range(3)] == losses
    ours, theirs = whole.state(), second.state()
    assert ours[1] == theirs[1] and all(torch.equal(value, theirs[0][name]) for name, value in ours[0].items())
    assert ours[0].keys() == theirs[0].keys() and {n.split(".")[0] for n in ours[0]} == {"network", "ema", "optimiser"}


def test_averaged_weights_alone_are_enough_to_draw(learned: PriorLearner) -> None:
    tensors, _ = learned.state()
    kept = {name: value for name, value in tensors.items() if name.startswith("ema.")}
    again = load_prior(shape_of(learned), kept)
    assert torch.equal(draw(again, 5, 0), draw(learned.averaged(), 5, 0))


def test_snippets_without_labels_are_drawn_without() -> None:
    snippets, labels, _ = clusters(50, 0)
    learner = PriorLearner(snippets, torch.full_like(labels, -1), SMALL)
    learner.step()
    assert learner.prior.shape.classes == 0 and draw(learner.averaged(), 2, 0).isfinite().all()
    with pytest.raises(ValueError, match="knows 0 classes, and not number 1"):
        draw(learner.averaged(), 2, 0, label=1)


def test_what_cannot_be_learned_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="of many snippets, and there are 1"):
        PriorLearner(torch.ones(1, 8), torch.zeros(1, dtype=torch.int64), SMALL)
    with pytest.raises(ValueError, match=r"prior\.drop is 1\.5; give at most 1"):
        PriorConfig(drop=1.5)


def test_a_coordinate_that_never_varies_does_no_harm() -> None:
    snippets, labels, _ = clusters(50, 0)
    snippets[:, 3] = 0
    learner = PriorLearner(snippets, labels, SMALL)
    assert torch.isfinite(torch.tensor([learner.step() for _ in range(3)])).all()
    assert Prior(PriorShape(8, 0, 32, 1))(torch.randn(2, 8), torch.rand(2)).eq(0).all()
