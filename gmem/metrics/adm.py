"""The .npz files of the ADM evaluation suite: reference statistics in, statistics and samples out."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from gmem.errors import InputError
from gmem.metrics.statistics import Gaussian
from gmem.weights import file_sha256

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
STATISTICS = (("mu", "sigma"), ("mu_s", "sigma_s"))
MAX_SIDE = 4096  # pixels; a batch of larger pictures would fill the memory


@dataclass(frozen=True)
class AdmReference:
    """What an ADM file holds: statistics of pool and spatial features, and the shape of the pictures (N, H, W, 3)."""

    path: Path
    sha256: str
    pool: Gaussian | None
    spatial: Gaussian | None
    images_shape: tuple[int, ...] | None

    def images(self, batch: int = 64) -> Iterator[NDArray[np.uint8]]:
        """The pictures in order, uint8 [b, H, W, 3], streamed: a reference batch may be larger than the memory."""
        if self.images_shape is None:
            raise InputError(f"{self.path} holds statistics only: its pictures (arr_0) are missing.")
        with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
            _header(file)
            for start in range(0, self.images_shape[0], batch):
                part = (min(batch, self.images_shape[0] - start), *self.images_shape[1:])
                try:
                    data = file.read(int(np.prod(part)))
                except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                    raise InputError(f"{self.path} is damaged in its pictures: fetch the file again.") from error
                if len(data) != np.prod(part):
                    raise InputError(f"{self.path} ends in the middle of its pictures: fetch the file again.")
                yield np.frombuffer(data, dtype=np.uint8).reshape(part)


def read_adm(path: str | Path) -> AdmReference:
    """Reads an ADM reference (`mu`, `sigma`, `mu_s`, `sigma_s`) or sample file (`arr_0`), without unpickling anything.

    Raises ValueError on a file that is not there or no .npz, has neither, or holds arrays of wrong shape or with NaN.
    """
    path = Path(path)
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no .npz file: give a reference or sample file of the ADM suite.")
    names, arrays, count = _read(path)
    pool, spatial = (_gaussian(arrays, count, path, *pair) for pair in STATISTICS)
    if pool is None and "arr_0" not in names:
        shown = sorted(name[:25] for name in names)[:3]
        raise InputError(f"{path} holds {shown}, and neither mu and sigma nor arr_0: it is no ADM file.")
    shape = _images_shape(path) if "arr_0" in names else None
    return AdmReference(path, file_sha256(path), pool, spatial, shape)


def write_adm_statistics(path: str | Path, pool: Gaussian, spatial: Gaussian | None = None) -> None:
    """Writes mu [D], sigma [D, D] and, with spatial features, mu_s and sigma_s, as ADM's evaluator reads them.

    `count` rides along under a name which ADM's evaluator does not look at.
    """
    arrays = {"mu": pool.mean, "sigma": pool.cov}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.cov}
    if pool.count is not None:
        arrays["count"] = np.asarray(pool.count)
    with Path(path).open("wb") as file:  # given a name, numpy would append .npz to it
        np.savez(file, allow_pickle=False, **arrays)


def write_adm_samples(path: str | Path, batches: Iterable[NDArray[np.uint8]], count: int) -> None:
    """Writes `count` pictures, uint8 [b, H, W, 3] a batch, as arr_0 [count, H, W, 3], one batch in memory at a time.

    Raises ValueError on other types or shapes, or another number of pictures than `count`; no file is left then.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + ".part")
    try:
        with (
            zipfile.ZipFile(unfinished, "w", allowZip64=True) as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as file,
        ):
            _write_pictures(file, batches, count)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_pictures(file: IO[bytes], batches: Iterable[NDArray[np.uint8]], count: int) -> None:
    size: tuple[int, ...] | None = None
    written = 0
    for batch in batches:
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3:
            raise ValueError(f"Samples must be uint8 [b, H, W, 3], not {batch.dtype} {batch.shape}.")
        if size is None:
            size = batch.shape[1:]
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *size)}
            np.lib.format.write_array_header_1_0(file, header)
        if batch.shape[1:] != size:
            raise ValueError(f"Samples of {batch.shape[1:]} do not fit those of {size} before: use one size.")
        file.write(np.ascontiguousarray(batch).tobytes())
        written += len(batch)
    if written != count:
        raise ValueError(f"{count} samples were asked for, and {written} came: generate the rest first.")


def _read(path: Path) -> tuple[set[str], dict[str, NDArray[np.float64]], int | None]:
    """Names of all arrays, those of the statistics, and how many pictures they are of."""
    try:
        with np.load(path, allow_pickle=False) as file:
            wanted = [name for pair in STATISTICS for name in pair if name in file.files]
            arrays = {name: np.asarray(file[name], dtype=np.float64) for name in wanted}
            return set(file.files), arrays, int(file["count"]) if wanted and "count" in file.files else None
    except Exception as error:  # numpy, zipfile and zlib fail on damaged bytes in every way there is
        shown = ", ".join(name for pair in STATISTICS for name in pair)
        raise InputError(f"{path} holds no readable numbers under {shown}: fetch the file again.") from error


def _gaussian(
    arrays: dict[str, NDArray[np.float64]], count: int | None, path: Path, mean: str, cov: str
) -> Gaussian | None:
    if mean not in arrays and cov not in arrays:
        return None
    if mean not in arrays or cov not in arrays:
        raise InputError(f"{path} has only one of {mean} and {cov}: fetch the whole file.")
    try:
        return Gaussian(arrays[mean], arrays[cov], count)
    except ValueError as error:
        raise InputError(f"{path}, {mean} and {cov}: {error}") from error


def _images_shape(path: Path) -> tuple[int, ...]:
    """The shape under arr_0, where it holds pictures."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            shape, dtype = _header(file)
    except Exception as error:  # as above
        raise InputError(f"{path} holds no readable array under arr_0: fetch the file again.") from error
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
        raise InputError(
            f"{path} holds {str(dtype)[:20]} {str(shape)[:60]} under arr_0, not pictures as uint8 [N, H, W, 3]."
        )
    if not shape[0] >= 0 or not all(0 < side <= MAX_SIDE for side in shape[1:3]):
        raise InputError(f"{path} states pictures of {str(shape)[:60]} under arr_0: fetch the file again.")
    return shape


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Reads the head of a .npy stream."""
    shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    if fortran:
        raise ValueError("columns first")
    return shape, dtype
