from __future__ import annotations

import functools
import hashlib
import http.server
import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from gmem.metrics import FidInception, load_inception, random_inception
from gmem.metrics.inception import resize

pytest.importorskip("torch_fidelity")


@pytest.fixture(scope="module")
def network() -> FidInception:
    return random_inception(seed=1)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_it_is_torch_fidelitys_network_with_the_same_weights(network: FidInception, images: torch.Tensor) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    weights = io.BytesIO()  # made here, a moment ago
    torch.save(network.state_dict(), weights)
    weights.seek(0)
    theirs = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights)
    seen = {}
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda _m, _i, out: seen.update(spatial=out))
    pool, logits = theirs(images)
    found = network(images)
    torch.testing.assert_close(found["pool"], pool, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found["logits"], logits, rtol=1e-6, atol=1e-6)
    assert found["pool"].shape == (2, 2048) and found["logits"].shape == (2, 1008)
    assert float(found["pool"].std(dim=0).mean()) > 1e-3  # the pictures are told apart
    # as ADM: [..., :7] of the NHWC tensor, flattened
    nhwc = seen["spatial"].permute(0, 2, 3, 1).numpy()
    assert nhwc.shape == (2, 17, 17, 192)
    np.testing.assert_allclose(found["spatial"].numpy(), nhwc[..., :7].reshape(2, -1), rtol=1e-6, atol=1e-6)


def test_resizing_is_tensorflow_1s(images: torch.Tensor) -> None:
    picture = images[:1].float()
    out = resize(picture)[0]
    for i, j in ((0, 0), (100, 7), (298, 298), (150, 299 - 2)):
        y, x = np.float32(i) * np.float32(40 / 299), np.float32(j) * np.float32(56 / 299)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, 39), min(left + 1, 55)
        p, dy, dx = picture[0].double(), float(y) - top, float(x) - left
        upper = p[:, top, left] * (1 - dx) + p[:, top, right] * dx
        lower = p[:, bottom, left] * (1 - dx) + p[:, bottom, right] * dx
        torch.testing.assert_close(out[:, i, j].double(), upper * (1 - dy) + lower * dy, rtol=1e-5, atol=1e-4)


def test_weights_from_a_file_bear_its_hash(network: FidInception, images: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    loaded = load_inception(path)
    assert len(loaded.identity["detector_hash"]) == 64 and loaded.identity["detector"] != network.identity["detector"]
    assert loaded.identity["detector_hash"] == hashlib.sha256(path.read_bytes()).hexdigest()
    torch.testing.assert_close(loaded(images[:1])["pool"], network(images[:1])["pool"], rtol=0, atol=0)


def test_weights_come_from_an_address_once(
    network: FidInception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as older files are: not zipped, and without the counters of batch normalisation
    state = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/weights.pth"
        loaded = load_inception(url)
        server.shutdown()
    assert load_inception(url).identity == loaded.identity
    torch.testing.assert_close(loaded.fc.weight, network.fc.weight, rtol=0, atol=0)
    with pytest.raises(ValueError, match="cannot be fetched"):
        load_inception(url.replace("weights", "others"))


def test_seeds_make_the_network_and_leave_the_callers_generator_alone(network: FidInception) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    again = random_inception(seed=1)
    assert torch.equal(torch.rand(2), expected)
    assert again.identity == network.identity


def test_the_callers_precision_settings_come_back(network: FidInception, images: torch.Tensor) -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert network(images[:1])["pool"].dtype == torch.float32
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


def test_foreign_weights_are_refused(network: FidInception, tmp_path: Path) -> None:
    state = network.state_dict()
    poisoned = {**state, "fc.bias": torch.full((1008,), torch.nan)}
    cases = {
        "text": b"hello",
        "surplus": {**state, "extra": torch.ones(1)},
        "shape": {**state, "fc.weight": torch.ones(10, 2048)},
        "nan": poisoned,
        "list": [torch.ones(1)],
        "object": {"fc.weight": Path("x")},  # anything but tensors
    }
    sentences = {
        "text": "no readable",
        "surplus": "1 tensors are missing, surplus",
        "shape": "another shape, such as fc.weight",
        "nan": "NaN",
        "list": "something else",
        "object": "no readable",
    }
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(ValueError, match=sentences[name]):
            load_inception(path)
    with pytest.raises(ValueError, match="no readable"):
        load_inception(tmp_path / "missing.pth")


def test_only_pictures_in_bytes_are_taken(network: FidInception, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        network(images.float())
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        network(images[:, :1])
