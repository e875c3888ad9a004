"""``gmem explore``: the bank and the generator as a page in a browser."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from flows.commands.bank_options import BankUri
from flows.commands.options import RecipeName, Set, StoreUri, resolved
from flows.console import show
from storage.errors import Refused

PASSWORD = "GMEM_EXPLORE_PASSWORD"


def explore(
    recipe: RecipeName = "emoji",
    port: Annotated[int, typer.Option(min=1, max=65535, help="where the page listens")] = 7860,
    host: Annotated[
        str, typer.Option(help=f"another address than this machine's own asks for the password in ${PASSWORD}")
    ] = "127.0.0.1",
    network: Annotated[
        str | None,
        typer.Option(metavar="URI", help="what generates: a checkpoint, training or imported network, or shipped:NAME"),
    ] = None,
    bank: BankUri = None,
    set: Set = None,
    store: StoreUri = None,
) -> None:
    """Opens a page to look into a bank: a map, search, neighbours, samples, edits and history."""
    import uvicorn

    from flows.page.app import LOCAL, make_app

    password = os.environ.get(PASSWORD) or None
    if host not in LOCAL and password is None:
        raise Refused(f"whoever reaches {host} could edit the bank: set a password in {PASSWORD}, or leave --host out")
    app = make_app(resolved(recipe, set, store), bank, host, password, network)
    show(f"http://{host}:{port}  (Ctrl-C ends it)")
    uvicorn.run(app, host=host.strip("[]"), port=port, log_level="warning")
