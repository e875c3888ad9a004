"""How good, how varied and how much its own the generated pictures are."""

from gmem.metrics.adm import AdmReference, read_adm, write_adm_samples, write_adm_statistics
from gmem.metrics.alignment import PixelCopies, aligned_similarity, pixel_copies
from gmem.metrics.diversity import SnippetDiversity, snippet_diversity
from gmem.metrics.evaluation import Overlaps, diversity_result, measure, memorisation_results, pixel_copies_result
from gmem.metrics.frechet import FrechetRatio, frechet_distance, frechet_distance_of_features, frechet_ratio
from gmem.metrics.inception import FidInception, load_inception, random_inception
from gmem.metrics.kernel import KernelDistance, kernel_distance
from gmem.metrics.manifold import Overlap, overlap
from gmem.metrics.memorisation import Memorisation, Nearest, memorisation
from gmem.metrics.protocol import Comparison, Protocol, Result, compare, guidance_text
from gmem.metrics.score import InceptionScore, inception_score
from gmem.metrics.sliced import sliced_wasserstein
from gmem.metrics.statistics import Gaussian, GaussianStatistics
from gmem.metrics.sums import FeatureSums, Sums, read_sums, write_sums
from gmem.metrics.vendi import vendi_score

__all__ = [
    "AdmReference",
    "Comparison",
    "FeatureSums",
    "FidInception",
    "FrechetRatio",
    "Gaussian",
    "GaussianStatistics",
    "InceptionScore",
    "KernelDistance",
    "Memorisation",
    "Nearest",
    "Overlap",
    "Overlaps",
    "PixelCopies",
    "Protocol",
    "Result",
    "SnippetDiversity",
    "Sums",
    "aligned_similarity",
    "compare",
    "diversity_result",
    "frechet_distance",
    "frechet_distance_of_features",
    "frechet_ratio",
    "guidance_text",
    "inception_score",
    "kernel_distance",
    "load_inception",
    "measure",
    "memorisation",
    "memorisation_results",
    "overlap",
    "pixel_copies",
    "pixel_copies_result",
    "random_inception",
    "read_adm",
    "read_sums",
    "sliced_wasserstein",
    "snippet_diversity",
    "vendi_score",
    "write_adm_samples",
    "write_adm_statistics",
    "write_sums",
]
