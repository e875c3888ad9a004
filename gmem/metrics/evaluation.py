"""From gathered features to results, each with its protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gmem.errors import InputError
from gmem.metrics.adm import AdmReference
from gmem.metrics.alignment import PixelCopies
from gmem.metrics.diversity import snippet_diversity
from gmem.metrics.frechet import frechet_distance, frechet_ratio
from gmem.metrics.inception import DETECTOR
from gmem.metrics.kernel import kernel_distance
from gmem.metrics.manifold import DENSITY_NEIGHBOURS, NEIGHBOURS, Overlap, overlap
from gmem.metrics.memorisation import COPY_QUANTILE, Memorisation
from gmem.metrics.protocol import Protocol, Result
from gmem.metrics.score import inception_score
from gmem.metrics.sliced import PROJECTIONS, sliced_wasserstein
from gmem.metrics.statistics import Gaussian
from gmem.metrics.sums import FeatureSums
from gmem.metrics.vendi import vendi_score

FEWEST = 4
"""Members on each side below which there are no two halves for the kernel distance."""
SPLITS = 10

Overlaps = Callable[[NDArray, NDArray], Overlap]  # samples [N, D], reference [M, D]


def measure(
    samples: FeatureSums,
    reference: FeatureSums | AdmReference,
    protocol: Protocol,
    subject: str = "",
    overlaps: Overlaps = overlap,
    features: FeatureSums | None = None,
    kernel_subsets: int = 100,
    real: FeatureSums | None = None,
) -> list[Result]:
    """Every metric that the gathered streams allow: Fréchet distances of `pool` and `spatial`, and, of kept `pool`, the
    distance over that of other real pictures (fdr), kernel distance, sliced Wasserstein distance (mind), precision,
    recall, density, coverage and the Vendi score; of kept `logits` the Inception Score.

    On the FID Inception network they bear their usual names (fid, sfid, kid, ...), on any other detector their
    family's, so that nobody takes one for the other (fd-NAME, kd-NAME, ...). ADM files hold no features: metrics that
    need the reference's take them from `features` or are left out. So are metrics for which there are too few samples
    (below 4 for the kernel distance, 6 for precision to coverage, 10 for the Inception Score).

    Args:
        samples: features of the generated pictures, one detector's.
        reference: the same detector's features of real pictures, or an ADM file's statistics.
        protocol: detector, reference, sampler and all else that the numbers depend on; goes into every result.
        subject: what was measured, for people.
        overlaps: finds precision, recall, density and coverage, the costliest of all, such as where a GPU is.
        features: of an ADM file's own pictures.
        kernel_subsets: subsets of the kernel distance.
        real: the same detector's features of real pictures that are not the reference's; none: no fdr.

    Raises ValueError where the protocol does not count the samples as they are, or statistics do not fit.

    >>> import numpy as np
    >>> def gathered(seed):
    ...     sums = FeatureSums(moments=["pool"], kept=["pool"])
    ...     sums.update({"pool": np.random.default_rng(seed).normal(size=(64, 8))}, np.arange(64))
    ...     return sums
    >>> told = dict.fromkeys(["resize", "reference", "reference_hash", "sampler", "guidance", "snippets", "latents"], "...")
    >>> protocol = Protocol(
    ...     detector="mine", detector_hash="...", reference_count=None, count=64, seed=0, steps=50, calls=99, **told
    ... )
    >>> [result.metric for result in measure(gathered(0), gathered(1), protocol)]
    ['fd-mine', 'mind-mine', 'kd-mine', 'precision-mine', 'recall-mine', 'density-mine', 'coverage-mine', 'vendi-mine']
    """
    if samples.count != protocol.count:
        raise InputError(f"The protocol asks for {protocol.count} samples, and there are {samples.count}.")
    moments = _reference_moments(reference)
    pictures = reference if isinstance(reference, FeatureSums) else features
    protocol = replace(protocol, reference_count=moments["pool"].count)
    results = [
        _frechet(samples, moments, stream, protocol) for stream in sorted(set(samples.statistics) & set(moments))
    ]
    if "pool" in samples.kept:
        results += _ratio(samples, real, moments["pool"], protocol)
        if pictures and "pool" in pictures.kept:
            counted = replace(protocol, reference_count=pictures.count)
            x, y = samples.features("pool"), pictures.features("pool")
            results.append(_sliced(x, y, counted))
            results += _kernel(x, y, counted, kernel_subsets)
            results += _overlap(x, y, counted, overlaps)
            results.append(_vendi(x, y, counted))
    if "logits" in samples.kept and samples.count >= SPLITS:
        score = inception_score(samples.features("logits"), SPLITS)
        results.append(Result("inception_score", score.value, protocol, details={"deviation": score.deviation}))
    return [replace(result, subject=subject) for result in results]


def _reference_moments(reference: FeatureSums | AdmReference) -> dict[str, Gaussian]:
    if isinstance(reference, FeatureSums):
        moments = {name: statistics.gaussian() for name, statistics in reference.statistics.items()}
    else:
        pairs = {"pool": reference.pool, "spatial": reference.spatial}
        moments = {name: gaussian for name, gaussian in pairs.items() if gaussian is not None}
    if "pool" not in moments:
        raise InputError("The reference holds no statistics of pooled features: run the detector over its pictures.")
    return moments


def _frechet(samples: FeatureSums, moments: dict[str, Gaussian], stream: str, protocol: Protocol) -> Result:
    usual = {"pool": ("fid", "fd"), "spatial": ("sfid", "sfd")}.get(stream, (f"fid-{stream}", f"fd-{stream}"))
    value = frechet_distance(samples.statistics[stream], moments[stream])
    return Result(_named(*usual, protocol), value, protocol)


def _ratio(samples: FeatureSums, real: FeatureSums | None, reference: Gaussian, protocol: Protocol) -> list[Result]:
    if real is None or "pool" not in real.kept or min(samples.count, real.count) < 2:
        return []
    found = frechet_ratio(samples.features("pool"), real.features("pool"), reference)
    if found is None:
        return []
    details = {"distance": found.distance, "real_distance": found.real_distance, "count": found.count}
    return [Result(_named("fidr", "fdr", protocol), found.value, protocol, details=details)]


def _sliced(x: NDArray, y: NDArray, protocol: Protocol) -> Result:
    return Result(
        _named("mind", "mind", protocol), sliced_wasserstein(x, y), protocol, details={"projections": PROJECTIONS}
    )


def _kernel(x: NDArray, y: NDArray, protocol: Protocol, subsets: int) -> list[Result]:
    if min(len(x), len(y)) < FEWEST:
        return []
    kernel = kernel_distance(x, y, subsets=subsets)
    details = {"deviation": kernel.deviation, "subset": kernel.subset, "subsets": kernel.subsets}
    name = _named("kid", "kd", protocol)
    return [Result(name, kernel.value, protocol, standard_error=kernel.standard_error, details=details)]


def _overlap(x: NDArray, y: NDArray, protocol: Protocol, overlaps: Overlaps) -> list[Result]:
    if min(len(x), len(y)) <= max(NEIGHBOURS, DENSITY_NEIGHBOURS):
        return []
    found = overlaps(x, y)
    neighbours = {
        "precision": NEIGHBOURS,
        "recall": NEIGHBOURS,
        "density": DENSITY_NEIGHBOURS,
        "coverage": DENSITY_NEIGHBOURS,
    }
    return [
        Result(_named(name, name, protocol), getattr(found, name), protocol, details={"neighbours": k})
        for name, k in neighbours.items()
    ]


def _vendi(x: NDArray, y: NDArray, protocol: Protocol) -> Result:
    """Beside the samples' score that of the reference's pictures, which says what to expect of as many."""
    return Result(_named("vendi", "vendi", protocol), vendi_score(x), protocol, details={"reference": vendi_score(y)})


def memorisation_results(found: Memorisation, protocol: Protocol, subject: str = "") -> list[Result]:
    """The numbers of a memorisation as results: memorisation_ratio, _closer, _copied, and where sources are known
    _from_source."""
    values = {"ratio": found.ratio, "closer": found.closer, "copied": found.copied, "from_source": found.from_source}
    names = {name: _named(f"memorisation_{name}", f"memorisation_{name}", protocol) for name in values}
    held_out = {"held_out": len(found.held_out_distances)}
    details = {"copied": held_out | {"quantile": COPY_QUANTILE, "distance": found.copy_distance}}
    return [
        Result(names[name], value, protocol, subject, details=details.get(name, {}))
        for name, value in values.items()
        if value is not None
    ]


def pixel_copies_result(found: PixelCopies, protocol: Protocol, subject: str = "") -> Result:
    """Copies in pixels, among the pictures nearest in the detector's features."""
    name = _named("memorisation_copied_pixels", "memorisation_copied_pixels", protocol)
    details = {"quantile": 1 - COPY_QUANTILE, "similarity": found.similarity}
    return Result(name, found.share, protocol, subject, details=details)


def diversity_result(samples: FeatureSums, seeds: int, protocol: Protocol, subject: str = "") -> Result:
    """How different samples of one snippet are; of `pool` features in the order snippet by snippet, `seeds` of each."""
    found = snippet_diversity(samples.features("pool"), np.arange(samples.count) // seeds)
    details = {"within": found.within, "between": found.between, "seeds": seeds}
    return Result(_named("diversity", "diversity", protocol), found.value, protocol, subject, details=details)


def _named(on_inception: str, elsewhere: str, protocol: Protocol) -> str:
    return on_inception if protocol.detector == DETECTOR else f"{elsewhere}-{protocol.detector}"
