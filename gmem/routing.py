"""Token routing: in training a random share of a picture's tokens goes around the middle blocks and joins again behind.

A step computes less, and the tokens that go around still take part before and after; samples are made of all tokens
(TREAD, F. Krause et al. 2025, arXiv 2501.04765). Written from the idea alone.
"""

from __future__ import annotations

from torch import Tensor, nn


def kept(draws: Tensor, share: float) -> Tensor:
    """Places [b, K] of the tokens that go through every block, in order, of draws [b, T] in [0, 1): those of the largest.

    `share` of them go around; at least one is kept.
    """
    tokens = draws.shape[1]
    count = max(1, tokens - round(share * tokens))
    order = draws.argsort(dim=1, descending=True, stable=True)
    places, _ = order[:, :count].sort(dim=1)
    return places


def through(block: nn.Module, tokens: Tensor, places: Tensor, condition: Tensor, turns: Tensor) -> Tensor:
    """Tokens [B, T, d] of which a block has seen and changed only those at `places` [B, K].

    `condition` and `turns` are what the block takes for all tokens.
    """
    index = places[:, :, None].expand(-1, -1, tokens.shape[-1])
    some = block(tokens.gather(1, index), condition, turns[places])
    return tokens.scatter(1, index, some)
