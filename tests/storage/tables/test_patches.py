from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from storage.tables.patches import Patches, PatchesWriter, stored_basis, write_fragments

ENCODER = {"name": "vit", "sha256": "ab"}


def test_tokens_come_back_through_the_basis_they_were_stored_with(tmp_path: Path) -> None:
    artifact, draw = str(tmp_path / "patches"), torch.Generator().manual_seed(0)
    components = torch.linalg.qr(torch.randn(8, 3, generator=draw))[0].T  # [K=3, D=8]
    mean, inner = torch.randn(8, generator=draw), torch.randn(5, 4, 3, generator=draw)
    full = inner @ components + mean  # [N=5, T=4, D=8], exactly of rank 3

    assert stored_basis(artifact) is None
    writer = PatchesWriter(artifact, 4, components, mean, ENCODER, lease=1)
    projected = (full - mean) @ components.T
    writer.commit([write_fragments(artifact, "shard-0", np.arange(5), projected.numpy())])
    basis = stored_basis(artifact)
    assert basis is not None and torch.equal(basis[0], components) and torch.equal(basis[1], mean)
    writer.verify(np.arange(5))

    table = Patches.open(artifact)
    assert (table.shape, table.encoder) == ((4, 3), ENCODER)
    rows = table.dataset.to_table()
    order = np.argsort(rows["id"].to_numpy())
    stored = torch.tensor(rows["tokens"].to_pylist()).reshape(5, 4, 3)[order]
    assert torch.allclose(stored @ table.components + table.mean, full, atol=5e-3)


def test_a_resumed_extraction_must_keep_its_basis(tmp_path: Path) -> None:
    artifact = str(tmp_path / "patches")
    PatchesWriter(artifact, 4, torch.eye(3, 8), torch.zeros(8), ENCODER, lease=1)
    PatchesWriter(artifact, 4, *stored_basis(artifact), ENCODER, lease=2)
    with pytest.raises(ValueError, match="another basis"):
        PatchesWriter(artifact, 4, torch.eye(3, 8) + 1, torch.zeros(8), ENCODER, lease=3)
    with pytest.raises(ValueError, match="float16"):
        write_fragments(artifact, "s", np.arange(1), np.full((1, 4, 3), np.inf))
    with pytest.raises(ValueError, match="no patch tokens"):
        Patches.open(str(tmp_path / "nowhere"))
