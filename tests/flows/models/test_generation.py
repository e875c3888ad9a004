"""What a generator is put together from: checkpoints, guides, and pieces that do not belong together."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from flows.engine.errors import StageError
from flows.models.generation import load_generator
from flows.models.resolve import guide_identity, network_identity, open_guide, open_network
from flows.recipe.files import RecipeError, load
from flows.recipe.model import Recipe
from gmem.encoder import load_encoder
from gmem.network import Network
from gmem.settings import NetworkConfig, SamplerConfig
from storage.checkpoints import Checkpoint, CheckpointManifest, save
from storage.errors import Refused
from storage.store import Artifact, Store

CONFIG = NetworkConfig(2, 32, 2, latent_channels=12, latent_size=8, snippet_dim=16)
STATISTICS: dict[str, Any] = {"latent_mean": [0.0] * 12, "latent_std": [1.0] * 12}


def written(artifact: Artifact, step: int, config: NetworkConfig = CONFIG, **about: Any) -> Checkpoint:
    torch.manual_seed(step)
    tensors = {f"ema.{name}": value for name, value in Network(config).state_dict().items()}
    manifest = CheckpointManifest(step=step, network=asdict(config), **(STATISTICS | about))
    return save(artifact, step, tensors, {}, manifest)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def training(store: Store) -> Artifact:
    artifact = store.artifact("training", "emoji", "0" * 12)
    for step in (2, 4):
        written(artifact, step)
    return artifact


@pytest.fixture(scope="module")
def checkpoint(training: Artifact) -> Checkpoint:
    return open_network(training.uri, training.store)


def recipe(store: Store, **sample: Any) -> Recipe:
    plain = {"kind": "ode", "method": "euler", "steps": 3, "guidance": 2.0}
    return load("emoji", {"store": store.root, "sample": plain | sample})


def test_a_network_is_named_by_checkpoint_training_or_place_in_the_store(training: Artifact, store: Store) -> None:
    newest = f"{training.uri}/checkpoints/step-00000004"
    for uri in (newest, training.uri, training.folder, f"{training.folder}/checkpoints/step-00000004", f"{newest}/"):
        assert open_network(uri, store).uri == newest
    with pytest.raises(ValueError, match="no finished checkpoint"):
        open_network("training/none-000000000000", store)


def test_the_shipped_network_goes_with_the_shipped_tokenizer_and_encoder(store: Store) -> None:
    shipped = open_network("shipped:emoji-network", store)
    assert sum(record.bytes for record in shipped.manifest.files.values()) <= 16 << 20
    chosen = load("emoji", {"store": store.root})
    generator = load_generator(shipped, chosen, "cpu")
    encoder = load_encoder(chosen.encoder.source, image_size=64)
    assert shipped.manifest.encoder["sha256"] == encoder.identity["sha256"]
    snippets = torch.nn.functional.normalize(torch.randn(2, 192), dim=1)
    images, _ = generator.images(snippets, torch.arange(2), SamplerConfig("ode", "euler", steps=3), seed=0)
    assert images.shape == (2, 3, 64, 64)
    with pytest.raises(ValueError, match=r"no weights named '../../x' are shipped .*emoji-network"):
        open_network("shipped:../../x", store)


def test_an_earlier_checkpoint_guides(checkpoint: Checkpoint, store: Store) -> None:
    def made(**sample: Any) -> tuple[torch.Tensor, int]:
        chosen = recipe(store, **sample)
        generator = load_generator(checkpoint, chosen, "cpu")
        snippets = torch.nn.functional.normalize(torch.ones(1, 16))
        return generator.images(snippets, torch.tensor([0]), chosen.sample, 0)

    guided, calls = made(guide="earlier:2")
    plain, other_calls = made()
    assert calls == other_calls == 2 * 3 - 2 and not torch.equal(guided, plain)
    guide = load_generator(checkpoint, recipe(store, guide="earlier:2"), "cpu").guide
    assert guide is not None
    torch.manual_seed(2)
    assert torch.equal(guide.x_embedder.proj.weight, Network(CONFIG).x_embedder.proj.weight)
    by_uri, _ = made(guide=f"{checkpoint.uri.rpartition('/')[0]}/step-00000002")
    assert torch.equal(guided, by_uri)
    assert open_guide(recipe(store, guide="earlier:2", guidance=1).sample, checkpoint, store) is None


def test_the_recipe_chooses_among_averages(store: Store) -> None:
    artifact = store.artifact("training", "averages", "4" * 12)
    torch.manual_seed(0)
    tensors = {
        f"{group}.{name}": value for group in ("ema", "ema_9") for name, value in Network(CONFIG).state_dict().items()
    }
    about = STATISTICS | {"details": {"averages": {"ema": 0.5, "ema_9": 0.9}}}
    saved = save(artifact, 1, tensors, {}, CheckpointManifest(step=1, network=asdict(CONFIG), **about))
    for decay, group in ((None, "ema"), (0.5, "ema"), (0.9, "ema_9")):
        network = load_generator(saved, recipe(store, ema=decay), "cpu").network
        assert torch.equal(network.state_dict()["x_embedder.proj.weight"], tensors[f"{group}.x_embedder.proj.weight"])
    first, other = (network_identity(saved.uri, store, recipe(store, ema=decay)) for decay in (0.5, 0.9))
    assert first == network_identity(saved.uri, store) != other
    with pytest.raises(
        Refused, match=r"averages of decay 0\.5, 0\.9, and none of 0\.8; set sample\.ema to one of these"
    ):
        load_generator(saved, recipe(store, ema=0.8), "cpu")


def test_samples_are_the_same_however_many_are_made_at_once(checkpoint: Checkpoint, store: Store) -> None:
    generator, config = load_generator(checkpoint, recipe(store), "cpu"), recipe(store).sample
    snippets, indices = torch.nn.functional.normalize(torch.randn(5, 16), dim=1), torch.arange(5)
    together, calls = generator.images(snippets, indices, config, 0)
    made = list(generator.batches(snippets, indices, config, 0, size=2))
    assert [len(images) for images, _ in made] == [2, 2, 1] and {taken for _, taken in made} == {calls}
    apart = torch.cat([images for images, _ in made])
    assert (apart.int() - together.int()).abs().max() <= 1  # of 255: rounding differs with the size of a batch


def test_a_guide_that_does_not_fit_is_refused(checkpoint: Checkpoint, store: Store) -> None:
    with pytest.raises(ValueError, match=r"earlier:3 is no checkpoint of .*\(earlier ones there: 2\)"):
        load_generator(checkpoint, recipe(store, guide="earlier:3"), "cpu")
    wider = NetworkConfig(2, 32, 2, latent_channels=12, latent_size=8, snippet_dim=17)
    other = written(store.artifact("training", "other", "1" * 12), 1, wider)
    with pytest.raises(StageError, match=r"differs from .* in snippet_dim; name a smaller or earlier network"):
        load_generator(checkpoint, recipe(store, guide=other.uri), "cpu")
    moved = written(store.artifact("training", "moved", "2" * 12), 1, latent_mean=[1.0] * 12)
    with pytest.raises(StageError, match="in latent statistics"):
        load_generator(checkpoint, recipe(store, guide=moved.uri), "cpu")
    with pytest.raises(RecipeError, match="names no step; write it as earlier:20000"):
        recipe(store, guide="earlier:soon")


def test_what_counts_of_a_guide_is_its_content(training: Artifact, store: Store) -> None:
    first, second = (f"{training.folder}/checkpoints/step-0000000{step}" for step in (2, 4))
    identities = [guide_identity(recipe(store, guide=uri).sample, store) for uri in (first, second, training.uri)]
    assert identities[0] != identities[1] == identities[2]
    assert guide_identity(recipe(store, guide="earlier:2").sample, store) == "earlier:2"


def test_pieces_that_do_not_belong_together_are_refused(store: Store) -> None:
    artifact = store.artifact("training", "pieces", "3" * 12)
    without = written(artifact, 1, latent_mean=[], latent_std=[])
    with pytest.raises(StageError, match=r"no latent statistics, .* import it again with --latent-stats"):
        load_generator(without, recipe(store), "cpu")
    four = written(artifact, 2, NetworkConfig(2, 32, 2, latent_channels=4, latent_size=8, snippet_dim=16))
    with pytest.raises(
        StageError, match=r"latents of 4 channels, and tokenizer\.source shipped:emoji-tokenizer decodes 12"
    ):
        load_generator(four, recipe(store), "cpu")
    foreign = written(artifact, 3, tokenizer={"name": "vavae", "sha256": "ab" * 32})
    with pytest.raises(StageError, match="trained on latents of vavae"):
        load_generator(foreign, recipe(store), "cpu")
