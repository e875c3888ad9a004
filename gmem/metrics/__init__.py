"""How good, how varied and how much its own the generated pictures are."""

from gmem.metrics.adm import AdmReference, read_adm, write_adm_samples, write_adm_statistics
from gmem.metrics.evaluation import Manifolds, measure, memorisation_results
from gmem.metrics.frechet import frechet_distance, frechet_distance_of_features
from gmem.metrics.inception import FidInception, load_inception, random_inception
from gmem.metrics.kernel import KernelDistance, kernel_distance
from gmem.metrics.manifold import PrecisionRecall, precision_recall
from gmem.metrics.memorisation import Memorisation, Nearest, memorisation
from gmem.metrics.protocol import Comparison, Protocol, Result, compare, guidance_text
from gmem.metrics.score import InceptionScore, inception_score
from gmem.metrics.statistics import Gaussian, GaussianStatistics
from gmem.metrics.sums import FeatureSums, Sums, read_sums, write_sums

__all__ = [
    "AdmReference",
    "Comparison",
    "FeatureSums",
    "FidInception",
    "Gaussian",
    "GaussianStatistics",
    "InceptionScore",
    "KernelDistance",
    "Manifolds",
    "Memorisation",
    "Nearest",
    "PrecisionRecall",
    "Protocol",
    "Result",
    "Sums",
    "compare",
    "frechet_distance",
    "frechet_distance_of_features",
    "guidance_text",
    "inception_score",
    "kernel_distance",
    "load_inception",
    "measure",
    "memorisation",
    "memorisation_results",
    "precision_recall",
    "random_inception",
    "read_adm",
    "read_sums",
    "write_adm_samples",
    "write_adm_statistics",
    "write_sums",
]
