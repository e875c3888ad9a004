"""``gmem import`` and ``gmem export``: the published files in, and networks out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.options import Json, StoreUri, opened, print_json
from flows.console import show, tell

if TYPE_CHECKING:
    from flows.exchange.importing import Imported

imports = typer.Typer(no_args_is_help=True, help="Bring published networks, banks and tokenizers into a store.")
exports = typer.Typer(
    no_args_is_help=True, help="Write networks, samples and statistics in the layouts that others read."
)

Name = Annotated[str | None, typer.Option(help="what to call it; none: as the file is called")]


@imports.command("network")
def network(
    file: Annotated[Path, typer.Argument(help="a published checkpoint, a state dict, or a folder of 'gmem export'")],
    store: StoreUri = None,
    latent_stats: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="the published latents_stats.pt, or a latents table's URI; needed to sample; none: the one in the folder",
        ),
    ] = None,
    name: Name = None,
    json: Json = False,
) -> None:
    """A network, to sample with (gmem sample --network URI), to evaluate (gmem evaluate URI) or to start a training from (train.start_from)."""
    from flows.exchange.importing import import_network, statistics_beside

    latent_stats = latent_stats or statistics_beside(file)
    imported = import_network(file, opened(store), name, latent_stats)
    _tell(imported, json, f"network {imported.details['size']}, {imported.counts['parameters']:,} parameters")
    if "left_out" in imported.details:
        tell(f"left out: {imported.details['left_out']}")
    if latent_stats is None:
        tell("to sample with it, import it with --latent-stats; training can start from it as it is")


@imports.command("bank")
def bank(
    file: Annotated[Path, typer.Argument(help="one tensor [N, D]: .pth, .pt, .npy or .safetensors")],
    store: StoreUri = None,
    labels: Annotated[Path | None, typer.Option(help="a text file with the label of one row a line")] = None,
    keys: Annotated[Path | None, typer.Option(help="a text file with the key of one row a line")] = None,
    index: Annotated[bool, typer.Option("--index", help="build the search index of a large bank too: minutes")] = False,
    name: Name = None,
    json: Json = False,
) -> None:
    """A bank of snippets, read a part at a time; an interrupted import goes on where it was."""
    from flows.engine.progress import Terminal
    from flows.exchange.importing_bank import import_bank

    with Terminal("bank") as bar:
        imported = import_bank(file, opened(store), labels, keys, name, index, bar)
    _tell(imported, json, f"bank of {imported.counts['rows']:,} rows of {imported.details['encoder']['dim']} numbers")


@imports.command("tokenizer")
def tokenizer(
    file: Annotated[Path, typer.Argument(help="a latent-diffusion autoencoder's checkpoint, such as VA-VAE's")],
    store: StoreUri = None,
    name: Name = None,
    json: Json = False,
) -> None:
    """An autoencoder under diffusers' names, for a recipe's tokenizer.source."""
    from flows.exchange.importing import import_tokenizer

    imported = import_tokenizer(file, opened(store), name)
    _tell(imported, json, "tokenizer f{factor}d{channels}".format(**imported.details))


@exports.command("network")
def export(
    checkpoint: Annotated[str, typer.Argument(help="URI of a checkpoint, training or imported network")],
    out: Annotated[Path, typer.Argument(help="a file (.pt, .pth) in the published layout, or a folder for all forms")],
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """The published layout, bit for bit; into a folder also safetensors with a config.json, as hubs carry them."""
    from flows.exchange.exporting import export_network

    files = [str(file.absolute()) for file in export_network(checkpoint, opened(store), out)]
    if json:
        print_json({"files": files})
    else:
        show("\n".join(files))


@exports.command("samples")
def samples(
    source: Annotated[str, typer.Argument(metavar="URI", help="the samples that an evaluation kept")],
    out: Annotated[Path, typer.Argument(help="an .npz that ADM's evaluator reads (arr_0, uint8)")],
    split: Annotated[str, typer.Option(help="those made from snippets of this split: train or held_out")] = "train",
    count: Annotated[int | None, typer.Option("-n", "--count", min=1, help="how many; none: all there are")] = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Kept samples as one file for ADM's evaluator, read a shard at a time."""
    from flows.exchange.exporting import export_samples

    written = export_samples(source, opened(store), out, split, count)
    _told(json, {"file": str(out.absolute()), "samples": written}, f"{written:,} samples: {out.absolute()}")


@exports.command("statistics")
def statistics(
    source: Annotated[str, typer.Argument(metavar="URI", help="the statistics that an evaluation kept")],
    out: Annotated[Path, typer.Argument(help="an .npz that ADM's evaluator reads (mu, sigma, mu_s, sigma_s)")],
    split: Annotated[str, typer.Option(help="pictures of this split: train or held_out")] = "train",
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Inception statistics of the recipe's pictures, as a reference for others and for evaluate.reference."""
    from flows.exchange.exporting import export_statistics

    pictures = export_statistics(source, opened(store), out, split)
    _told(json, {"file": str(out.absolute()), "pictures": pictures}, f"of {pictures:,} pictures: {out.absolute()}")


def _told(json: bool, values: dict[str, Any], text: str) -> None:
    print_json(values) if json else show(text)


def _tell(imported: Imported, json: bool, what: str) -> None:
    if json:
        print_json(
            {"uri": imported.uri, "artifact": imported.artifact, "fresh": imported.fresh, **imported.counts}
            | imported.details
        )
    else:
        show(f"{what}{'' if imported.fresh else ', imported before'}: {imported.uri}")
