"""Draws are a function of seed, step and place; batches and draws go to a device by rows."""

from __future__ import annotations

import torch

from gmem.batch import Batch, draw

SHAPE, SNIPPET, SEED = (4, 4, 4), 8, 3


def test_draws_depend_on_seed_step_and_place_only():
    whole = draw(SEED, 5, 7, SHAPE, SNIPPET, slice(0, 7))
    pieces = [draw(SEED, 5, 7, SHAPE, SNIPPET, rows) for rows in (slice(0, 3), slice(3, 7))]
    for part, first, second in zip(whole, *pieces, strict=True):
        assert torch.equal(part, torch.cat([first, second]))
    assert not torch.equal(whole.noise, draw(SEED, 6, 7, SHAPE, SNIPPET, slice(0, 7)).noise)
    assert not torch.equal(whole.noise[0], whole.noise[1])


def test_draws_have_the_right_distributions():
    draws = draw(SEED, 0, 500, SHAPE, SNIPPET, slice(None))
    assert draws.noise.mean().abs() < 0.02 and abs(draws.noise.std() - 1) < 0.02
    assert draws.time.mean().abs() < 0.2
    assert draws.mask.min() >= 0 and draws.mask.max() < 1 and abs(draws.mask.mean() - 0.5) < 0.02


def test_draws_of_tokens_change_no_other_draw():
    plain, routed = (draw(SEED, 5, 7, SHAPE, SNIPPET, slice(None), tokens=tokens) for tokens in (0, 16))
    assert plain.route.shape == (7, 0) and routed.route.shape == (7, 16)
    assert all(torch.equal(a, b) for a, b in zip(plain[:-1], routed[:-1], strict=True))


def test_another_attempt_has_other_draws():
    first, second = (draw(SEED, 5, 7, SHAPE, SNIPPET, slice(0, 7), attempt) for attempt in (0, 1))
    assert not torch.equal(first.noise, second.noise) and not torch.equal(first.mask, second.mask)


def test_rows_go_to_a_device_and_what_is_missing_stays_missing():
    batch = Batch(torch.randn(5, *SHAPE), torch.randn(5, SNIPPET), label=torch.arange(5))
    part = batch.on(torch.device("cpu"), slice(1, 3))
    assert part.tokens is None and part.label.tolist() == [1, 2]
    assert torch.equal(part.latent, batch.latent[1:3])
    draws = draw(SEED, 0, 5, SHAPE, SNIPPET, slice(None))
    assert torch.equal(draws.on(torch.device("cpu"), slice(1, 3)).noise, draws.noise[1:3])
