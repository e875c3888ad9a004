"""What the page asks for. Every answer is JSON or a picture; what is refused is one sentence with status 400.

Rows are those of one version of the bank, the newest unless `at` names another. Anybody who can reach the page can edit
the bank: it listens to this machine alone, or asks for a password, and takes orders only from its own pages.
"""

from __future__ import annotations

import base64
import io
import secrets
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
from fastapi import Body, FastAPI, HTTPException, Request, Response
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBasic
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field

from flows.explore import (
    Generated,
    draw_snippets,
    generate,
    generate_from,
    open_bank,
    version_of,
    walk,
)
from flows.incoming import add_pictures, encode_picture
from flows.recipe.model import Recipe
from flows.refusals import REFUSALS
from storage.errors import Refused, StoreUnreachable
from storage.tables.bank import Bank

PAGE = Path(__file__).with_name("page.html")
LOCAL = ("127.0.0.1", "localhost", "[::1]")
LARGEST_UPLOAD = 20 << 20
ORDER = "x-gmem"
"""Header of what changes something or computes: no other site's page can send it here unasked."""
SHOWN = ["id", "key", "class", "caption", "origin", "split", "parents"]
MOST = 64

Ids = Annotated[list[int], Field(min_length=1, max_length=MOST)]
Next = Callable[[Request], Awaitable[Response]]


class Order(BaseModel):
    """What to generate from, or to withdraw."""

    ids: Ids
    network: str | None = None
    at: str | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    steps: Annotated[int, Field(ge=2, le=33)] = 9
    method: str = "spherical"
    reason: str = ""


class Draw(BaseModel):
    """How many to draw from the prior and to generate from."""

    count: Annotated[int, Field(ge=1, le=MOST)] = 8
    of_class: str | None = None
    network: str | None = None
    seed: Annotated[int, Field(ge=0)] = 0


class Explorer:
    """A recipe's bank at its versions, and a map of it."""

    def __init__(self, recipe: Recipe, bank: str | None = None) -> None:
        self.recipe, self.named = recipe, bank
        self.lock = threading.Lock()
        self.maps: dict[int, dict[str, Any]] = {}
        self.newest = open_bank(recipe, bank)

    def bank(self, at: str | None = None) -> Bank:
        if at:
            return open_bank(self.recipe, self.named, version_of(at))
        with self.lock:
            self.newest.refresh()
        return self.newest

    def map(self, at: str | None) -> dict[str, Any]:
        """Columns of all rows but mirror images, with their place on the two leading principal components."""
        bank = self.bank(at)
        with self.lock:  # costly, and the same for everybody
            if bank.version not in self.maps:
                self.maps = {bank.version: _map(bank)}
            return self.maps[bank.version]


def _map(bank: Bank) -> dict[str, Any]:
    rows = bank.scan(["class", "origin", "split", "snippet"], "NOT flipped")
    place = _principal(torch.from_numpy(bank.full(rows["snippet"]).copy()).float())
    columns = {name: rows[name].to_pylist() for name in ("id", "class", "origin", "split")}
    return columns | {"x": place[:, 0].tolist(), "y": place[:, 1].tolist(), "version": bank.version}


def _principal(snippets: torch.Tensor) -> torch.Tensor:
    """[N, 2] in [-1, 1], the same for the same snippets [N, D]."""
    if len(snippets) < 3:
        return torch.linspace(-1, 1, len(snippets))[:, None].expand(-1, 2)
    torch.manual_seed(0)  # of the randomised decomposition
    unit = torch.nn.functional.normalize(snippets, dim=1)
    scores, scale, _ = torch.pca_lowrank(unit, q=2)
    place = scores * scale
    low, high = place.amin(0), place.amax(0)
    return ((2 * place - low - high) / (high - low).clamp_min(1e-9)).mul(1e4).round().div(1e4)


def make_app(recipe: Recipe, bank: str | None, host: str, password: str | None, network: str | None = None) -> FastAPI:
    """The page's server.

    Args:
        recipe: names store, encoder and sampler; its store holds the bank.
        bank: another one's URI or fingerprint.
        host: the name by which it is reached, besides this machine's own.
        password: whoever asks must know it, under any name; None: nobody is asked.
        network: URI of the network that generates unless the page names another.
    """
    explorer = Explorer(recipe, bank)
    app = FastAPI(title=f"gmem explore {recipe.name}", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(GZipMiddleware)
    _guard(app, {*LOCAL, host}, password)
    _answer_questions(app, explorer, network)
    _generate(app, explorer, network)
    _edit(app, explorer)
    return app


def _guard(app: FastAPI, known: set[str], password: str | None) -> None:
    """Keeps others' pages and strangers out, and turns what is refused into an answer."""

    @app.middleware("http")
    async def guard(request: Request, call_next: Next) -> Response:
        name = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
        if password is None and name not in known:  # a page elsewhere whose name was made to lead here
            return JSONResponse({"error": f"this page is not {name[:80]}"}, 403)
        if request.method == "POST" and ORDER not in request.headers:
            return JSONResponse({"error": "orders come from this page alone"}, 403)
        if password is not None and not await _knows(request, password):
            return JSONResponse({"error": "a password is needed"}, 401, {"WWW-Authenticate": "Basic"})
        return await call_next(request)

    async def refused(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 400)

    for kind in (*REFUSALS, StoreUnreachable):
        app.add_exception_handler(kind, refused)


def _answer_questions(app: FastAPI, explorer: Explorer, network: str | None) -> None:
    """The page, the map, rows and searches, which change nothing and need no network."""
    recipe = explorer.recipe

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(PAGE)

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        changes = [change.to_dict() for change in explorer.bank().history()]
        return {"recipe": recipe.name, "network": network, "history": changes}

    @app.get("/api/map")
    def places(at: str | None = None) -> dict[str, Any]:
        return explorer.map(at)

    @app.get("/api/thumbnail/{row}")
    def thumbnail(row: int, at: str | None = None) -> Response:
        data = explorer.bank(at).rows([row], ["thumbnail"])["thumbnail"].to_pylist()[0]
        if data is None:
            raise HTTPException(404, "the bank has no picture of this row")
        return Response(data, media_type="image/webp", headers={"Cache-Control": "max-age=3600"})

    @app.get("/api/search")
    def search(
        text: str | None = None, row: int | None = None, where: str | None = None, k: int = 32, at: str | None = None
    ) -> list[dict[str, Any]]:
        asked = row if text is None else text
        return _rows(explorer.bank(at).search(asked, min(max(k, 1), 500), where or None, columns=SHOWN))

    @app.post("/api/near")
    async def near(request: Request, at: str | None = None, k: int = 32) -> list[dict[str, Any]]:
        data = await _uploaded(request)
        opened = explorer.bank(at)
        snippet = _with_file(data, lambda path: encode_picture(path, recipe, opened))
        return _rows(opened.search(snippet, min(k, 500), columns=SHOWN))


def _generate(app: FastAPI, explorer: Explorer, network: str | None) -> None:
    """Pictures of rows, of what lies between two, and of what is nobody's."""
    recipe = explorer.recipe

    def seeded(seed: int) -> Recipe:
        return recipe.model_copy(update={"sample": recipe.sample.model_copy(update={"seed": seed})})

    @app.post("/api/generate")
    def make(order: Annotated[Order, Body()]) -> dict[str, Any]:
        ids = np.array(order.ids)
        return _generated(generate(seeded(order.seed), explorer.bank(order.at), ids, order.network or network))

    @app.post("/api/draw")
    def draw(wanted: Annotated[Draw, Body()]) -> dict[str, Any]:
        chosen, opened = seeded(wanted.seed), explorer.bank()
        drawn = draw_snippets(chosen, opened, wanted.count, wanted.of_class)
        made = generate_from(chosen, opened, drawn.snippets, wanted.network or network)
        return _generated(made) | {"nearest": drawn.nearest.tolist(), "similarity": drawn.similarity.tolist()}

    @app.post("/api/walk")
    def between(order: Annotated[Order, Body()]) -> dict[str, Any]:
        if len(order.ids) != 2:
            raise Refused(f"a way leads from one row to another: choose 2, not {len(order.ids)}")
        ends = order.ids[0], order.ids[1]
        made = walk(recipe, explorer.bank(order.at), ends, order.steps, order.method, order.network or network)
        return _generated(made)


def _edit(app: FastAPI, explorer: Explorer) -> None:
    """What changes the bank."""
    recipe = explorer.recipe

    @app.post("/api/withdraw")
    def withdraw(order: Annotated[Order, Body()]) -> dict[str, Any]:
        return explorer.bank().withdraw(order.reason, ids=order.ids).to_dict()

    @app.post("/api/add")
    async def add(request: Request, name: str, batch: str = "explorer") -> dict[str, Any]:
        data = await _uploaded(request)
        file = f"{Path(name).stem[:80] or 'picture'}{Path(name).suffix[:8]}"
        with tempfile.TemporaryDirectory(prefix="gmem-") as folder:
            (Path(folder) / file).write_bytes(data)
            found = add_pictures(recipe, explorer.bank(), folder, batch, "added in the explorer")
        return found.added.to_dict()


async def _knows(request: Request, password: str) -> bool:
    given = await HTTPBasic(auto_error=False)(request)
    return given is not None and secrets.compare_digest(given.password.encode(), password.encode())


async def _uploaded(request: Request) -> bytes:
    """The body, as long as it is no longer than a picture may be."""
    parts, total = list[bytes](), 0
    async for part in request.stream():
        total += len(part)
        if total > LARGEST_UPLOAD:
            raise Refused(f"the file has more than {LARGEST_UPLOAD >> 20} MiB; give a smaller picture")
        parts.append(part)
    return b"".join(parts)


def _with_file(data: bytes, read: Callable[[Path], NDArray[np.float32]]) -> NDArray[np.float32]:
    with tempfile.NamedTemporaryFile(prefix="gmem-") as file:
        file.write(data)
        file.flush()
        return read(Path(file.name))


def _rows(found: pa.Table) -> list[dict[str, Any]]:
    measures = [name for name in ("_distance", "_score") if name in found.column_names]
    return found.select([*SHOWN, *measures]).to_pylist()


def _generated(made: Generated) -> dict[str, Any]:
    return {"pictures": [_inline(picture) for picture in made.images], "calls": made.calls, "step": made.step}


def _inline(picture: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
