"""Tokens that go around the middle blocks, and those that do not."""

from __future__ import annotations

import torch

from gmem.batch import draw
from gmem.network import Network
from gmem.routing import kept
from gmem.settings import NetworkConfig

SHAPE, SNIPPET, TOKENS = (4, 4, 4), 8, 16


def make_network(depth: int = 8, **rest: int) -> Network:
    torch.manual_seed(0)
    config = NetworkConfig(depth, 32, 2, latent_channels=4, latent_size=4, snippet_dim=SNIPPET, **rest)
    return Network(config).eval()


def test_a_share_of_each_picture_s_tokens_is_drawn_wherever_the_picture_is() -> None:
    whole = draw(0, 5, 6, SHAPE, SNIPPET, slice(None), tokens=TOKENS).route
    places = kept(whole, 0.7)
    assert places.shape == (6, TOKENS - 11) and len({tuple(row) for row in places.tolist()}) > 1
    assert all(row == sorted(set(row)) and max(row) < TOKENS for row in places.tolist())
    part = draw(0, 5, 6, SHAPE, SNIPPET, slice(2, 4), tokens=TOKENS).route
    assert torch.equal(kept(part, 0.7), places[2:4])
    assert kept(whole, 0.999).shape == (6, 1) and kept(whole[:0], 0.7).shape == (0, TOKENS - 11)
    many = kept(torch.rand(4000, TOKENS, generator=torch.Generator().manual_seed(0)), 0.5)
    share = torch.bincount(many.flatten(), minlength=TOKENS) / 4000
    assert (share - 0.5).abs().max() < 0.05


def test_the_middle_lies_behind_the_head_and_before_the_last_blocks() -> None:
    sizes = {"T": range(4, 5), "B": range(4, 10), "XL": range(4, 24)}
    for size, middle in sizes.items():
        assert NetworkConfig.of(size, projection_dim=6).middle == middle  # type: ignore[arg-type]
    assert NetworkConfig.of("B").middle == range(2, 10)


def test_tokens_that_go_around_pass_the_middle_blocks_unchanged() -> None:
    network = make_network(projection_dim=6, projection_hidden=16)
    middle = network.config.middle
    assert middle == range(4, 7)
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for number, block in enumerate(network.blocks):
        block.register_forward_hook(lambda _, given, made, number=number: seen.update({number: (given[0], made)}))
    x, t, snippet = torch.randn(3, *SHAPE), torch.rand(3), torch.randn(3, SNIPPET)
    places = kept(draw(0, 0, 3, SHAPE, SNIPPET, slice(None), tokens=TOKENS).route, 0.5)
    with torch.no_grad():
        _, projected = network.forward_training(x, t, snippet, kept=places)
        _, whole = network.forward_training(x, t, snippet)
    assert projected is not None and whole is not None and torch.equal(projected, whole)  # the head saw all tokens

    seen.clear()
    with torch.no_grad():
        network.forward_training(x, t, snippet, kept=places)
    assert [given.shape[1] for given, _ in seen.values()] == [16, 16, 16, 16, 8, 8, 8, 16]
    before, after = seen[middle.start - 1][1], seen[middle.stop][0]
    for picture, row in enumerate(places.tolist()):
        around = [place for place in range(TOKENS) if place not in row]
        assert torch.equal(before[picture, around], after[picture, around])
        assert torch.equal(seen[middle.stop - 1][1][picture], after[picture, row])


def test_all_tokens_kept_in_order_are_no_routing() -> None:
    """Each with its own place: rotary positions go with the tokens."""
    network = make_network()
    x, t, snippet = torch.randn(2, *SHAPE), torch.rand(2), torch.randn(2, SNIPPET)
    with torch.no_grad():
        routed, _ = network.forward_training(x, t, snippet, kept=torch.arange(TOKENS).expand(2, -1))
        turned, _ = network.forward_training(x, t, snippet, kept=torch.arange(TOKENS).flip(0).expand(2, -1))
        plain = network(x, t, snippet)
    torch.testing.assert_close(routed, plain)
    torch.testing.assert_close(turned, plain)
