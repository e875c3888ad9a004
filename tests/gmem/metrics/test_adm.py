from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from gmem.metrics import Gaussian, read_adm, write_adm_samples, write_adm_statistics


def _gaussian(dim: int, count: int | None = 100) -> Gaussian:
    features = np.random.default_rng(dim).normal(size=(100, dim))
    return Gaussian(features.mean(axis=0), np.cov(features, rowvar=False), count)


def _pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(count, 8, 8, 3), dtype=np.uint8)


def test_statistics_go_there_and_back(tmp_path: Path) -> None:
    pool, spatial = _gaussian(12), _gaussian(7)
    write_adm_statistics(tmp_path / "stats.npz", pool, spatial)
    read = read_adm(tmp_path / "stats.npz")
    assert read.pool is not None and read.spatial is not None
    np.testing.assert_array_equal(read.pool.cov, pool.cov)
    np.testing.assert_array_equal(read.spatial.mean, spatial.mean)
    assert read.pool.count == 100 and len(read.sha256) == 64
    with pytest.raises(ValueError, match="statistics only"):
        next(read.images())


def test_a_reference_as_adm_publishes_it(tmp_path: Path) -> None:
    pool, pictures = _gaussian(12), _pictures(10)
    np.savez_compressed(
        tmp_path / "r.npz", arr_0=pictures, mu=pool.mean, sigma=pool.cov, mu_s=pool.mean, sigma_s=pool.cov
    )
    read = read_adm(tmp_path / "r.npz")
    assert read.images_shape == (10, 8, 8, 3) and read.pool is not None and read.pool.count is None
    batches = list(read.images(batch=4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(batches), pictures)


def test_samples_are_what_adms_evaluator_takes(tmp_path: Path) -> None:
    pictures = _pictures(11)
    write_adm_samples(tmp_path / "samples.npz", np.array_split(pictures, 3), count=11)
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0"]
        np.testing.assert_array_equal(file["arr_0"], pictures)
    assert read_adm(tmp_path / "samples.npz").images_shape == (11, 8, 8, 3)


def test_too_few_samples_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="12 samples were asked for, and 11 came"):
        write_adm_samples(tmp_path / "s.npz", [_pictures(11)], count=12)
    with pytest.raises(ValueError, match="uint8"):
        write_adm_samples(tmp_path / "s.npz", [_pictures(2).astype("f4")], count=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"weights": np.ones(3)}, "neither mu and sigma nor arr_0"),
        ({"mu": np.ones(3)}, "only one of mu and sigma"),
        ({"mu": np.ones(3), "sigma": np.eye(4)}, "does not belong"),
        ({"mu": np.array([1.0, np.nan]), "sigma": np.eye(2)}, "NaN"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "no readable numbers"),
        ({"mu": np.array([{}, {}]), "sigma": np.eye(2)}, "no readable numbers"),  # would need a pickle
        ({"arr_0": np.ones((2, 3, 8, 8), np.uint8)}, "not pictures"),
        ({"arr_0": np.ones((2, 8, 8, 3), np.float32)}, "not pictures"),
        ({"arr_0": np.array([{}, {}])}, "not pictures"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str) -> None:
    np.savez(tmp_path / "foreign.npz", **arrays)
    with pytest.raises(ValueError, match=sentence):
        read_adm(tmp_path / "foreign.npz")


def test_truncated_and_missing_files_are_refused(tmp_path: Path) -> None:
    write_adm_statistics(tmp_path / "whole.npz", _gaussian(12))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:500])
    for name in ("cut.npz", "none.npz"):
        with pytest.raises(ValueError, match=r"no \.npz file"):
            read_adm(tmp_path / name)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr",
        b"((((",
        b"(" * 5000,
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999999999999,)}",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,)}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (9, 999999, 999999, 3)}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (-9, 8, 8, 3)}",
    ],
)
@pytest.mark.parametrize("name", ["mu", "arr_0"])
def test_damaged_headers_of_arrays_are_refused(tmp_path: Path, name: str, header: bytes) -> None:
    array = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + bytes(64)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr(f"{name}.npy", array)
        archive.writestr("sigma.npy", array)
    with pytest.raises(ValueError, match="fetch the") as error:
        read_adm(tmp_path / "x.npz")
    assert "\n" not in str(error.value)


def test_wrong_checksums_are_refused(tmp_path: Path) -> None:
    write_adm_statistics(tmp_path / "stats.npz", _gaussian(12))
    write_adm_samples(tmp_path / "samples.npz", [_pictures(200)], count=200)
    for name, place in (("stats.npz", 400), ("samples.npz", 30_000)):
        data = bytearray((tmp_path / name).read_bytes())
        data[place] ^= 1
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match="no readable numbers"):
        read_adm(tmp_path / "stats.npz")
    with pytest.raises(ValueError, match="damaged in its pictures"):
        list(read_adm(tmp_path / "samples.npz").images())
