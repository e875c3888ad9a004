"""The explorer's answers, from a real bank, encoder and network."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app as command
from flows.engine.stage import Plan
from flows.explore import open_bank
from flows.page.app import PAGE, make_app
from flows.recipe.model import Recipe
from flows.stages.prior.stage import PRIOR
from gmem.prior import PriorLearner, shape_of
from storage.checkpoints import CheckpointManifest, save
from tests.flows.commands.conftest import PICTURES, encoder, picture, recipe  # noqa: F401  (fixtures)

NETWORK = "shipped:emoji-network"
ORDER = {"X-Gmem": "1"}


@pytest.fixture
def page(recipe: Recipe) -> TestClient:  # noqa: F811
    return TestClient(make_app(recipe, None, "127.0.0.1", None, NETWORK), base_url="http://127.0.0.1")


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(number)).save(buffer, "png")
    return buffer.getvalue()


def asked(page: TestClient, path: str, **order: Any) -> Any:
    return page.post(path, json=order, headers=ORDER)


def test_the_bank_is_shown_and_searched(page: TestClient) -> None:
    assert page.get("/").text == PAGE.read_text()
    about = page.get("/api/about").json()
    assert (about["recipe"], about["network"]) == ("emoji", NETWORK)
    assert [change["kind"] for change in about["history"]] == ["built"]
    places = page.get("/api/map").json()
    assert places["id"] == list(range(0, 2 * PICTURES, 2)) and places["class"] == ["flags", "food"] * 3
    for axis in ("x", "y"):
        assert (min(places[axis]), max(places[axis])) == (-1, 1)
    thumbnail = page.get("/api/thumbnail/4")
    assert Image.open(io.BytesIO(thumbnail.content)).format == "WEBP"
    near = page.get("/api/search", params={"row": 0, "k": 3}).json()
    assert near[0]["id"] == 0 and len(near) == 3 and near[0]["_distance"] < 1e-3
    words = page.get("/api/search", params={"text": "number3"}).json()
    assert {row["key"] for row in words} == {"food/3"}
    of_class = page.get("/api/search", params={"where": "class = 'flags' AND NOT flipped"}).json()
    assert len(of_class) == 3
    like = page.post("/api/near", content=png(2), headers=ORDER).json()
    assert like[0]["id"] == 4


def test_a_hundred_thousand_rows_are_mapped_and_searched(page: TestClient, recipe: Recipe, encoder: Any) -> None:  # noqa: F811
    count = 100_000
    snippets = np.random.default_rng(0).standard_normal((count, 192), np.float32).astype(np.float16)
    flipped, classes = [False] * count, [f"class {n % 50}" for n in range(count)]
    ids = open_bank(recipe).append(snippets, "external", encoder.identity, flipped=flipped, classes=classes)
    places = page.get("/api/map")
    assert len(places.content) < 15e6, "a browser takes it in one piece"
    columns = places.json()
    assert columns["id"][-count:] == ids.tolist() and len(set(columns["class"])) == 52
    assert np.isfinite(columns["x"]).all() and np.ptp(columns["y"]) == 2
    near = page.get("/api/search", params={"row": int(ids[7]), "k": 5, "where": "class = 'class 7'"}).json()
    assert near[0]["id"] == ids[7] and len(near) == 5


def test_pictures_are_generated_and_walked_between(page: TestClient) -> None:
    made = asked(page, "/api/generate", ids=[0, 2], seed=3).json()
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(p.partition(",")[2])))) for p in made["pictures"]]
    assert [p.shape for p in pictures] == [(64, 64, 3)] * 2 and made["step"] == 2480
    other = asked(page, "/api/generate", ids=[0, 2], seed=4).json()
    assert other["pictures"][0] != made["pictures"][0]
    assert len(asked(page, "/api/walk", ids=[0, 2], steps=3).json()["pictures"]) == 3
    assert "choose 2" in asked(page, "/api/walk", ids=[0]).json()["error"]


def test_the_prior_is_drawn_from_beside_the_nearest_rows(page: TestClient, recipe: Recipe) -> None:  # noqa: F811
    assert "has no prior in" in asked(page, "/api/draw", count=2).json()["error"]
    learning = recipe.model_copy(update={"prior": recipe.prior.model_copy(update={"steps": 2})})
    artifact = Plan(learning).artifact(PRIOR)
    bank = open_bank(recipe)
    snippets = torch.from_numpy(bank.full(bank.scan(["snippet"])["snippet"]).copy())
    learner = PriorLearner(snippets, torch.zeros(len(snippets), dtype=torch.int64), learning.prior)
    tensors, progress = learner.state()
    save(artifact, 2, tensors, progress, CheckpointManifest(step=2, network=shape_of(learner)))
    with artifact.lease("test") as lease:
        artifact.commit(artifact.describe(lease))
    made = asked(page, "/api/draw", count=3, of_class="flags").json()
    assert len(made["pictures"]) == len(made["nearest"]) == 3 and max(made["similarity"]) < 1
    assert set(made["nearest"]) <= set(range(2 * PICTURES))
    assert "no class 'cats'" in asked(page, "/api/draw", of_class="cats").json()["error"]
    assert asked(page, "/api/draw", count=1000).status_code == 422


def test_a_picture_is_added_found_and_withdrawn_and_the_past_stays(page: TestClient) -> None:
    before = page.get("/api/about").json()["history"][-1]["version"]
    added = page.post("/api/add", params={"name": "mine.png"}, content=png(100), headers=ORDER).json()
    (row,) = added["ids"]
    found = page.get("/api/search", params={"where": "origin = 'external'"}).json()
    assert [(each["id"], each["key"]) for each in found] == [(row, "explorer/mine")]
    assert len(page.get("/api/map").json()["id"]) == PICTURES + 1
    again = page.post("/api/add", params={"name": "mine.png"}, content=png(100), headers=ORDER).json()
    assert not again["ids"] and again["duplicates"]
    assert len(asked(page, "/api/generate", ids=[row]).json()["pictures"]) == 1
    assert "reason" in asked(page, "/api/withdraw", ids=[row]).json()["error"]
    assert asked(page, "/api/withdraw", ids=[row], reason="a trial").json()["asked"] == [row]
    assert not page.get("/api/search", params={"where": "origin = 'external'"}).json()
    assert len(page.get("/api/map", params={"at": before}).json()["id"]) == PICTURES
    assert [change["kind"] for change in page.get("/api/about").json()["history"]] == ["built", "append", "withdraw"]


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("search", {"where": "drop table bank"}),
        ("search", {"where": "key = 'a"}),
        ("search", {"row": 999}),
        ("map", {"at": "no-such-tag"}),
        ("thumbnail/999", {}),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(page: TestClient, path: str, parameters: dict[str, Any]) -> None:
    answer = page.get(f"/api/{path}", params=parameters)
    assert answer.status_code == 400 and len(answer.json()["error"]) < 500 and "\n" not in answer.json()["error"]


def test_uploads_are_checked_like_any_picture(page: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = page.post("/api/near", content=b"no picture", headers=ORDER)
    assert answer.status_code == 400 and "cannot be used" in answer.json()["error"]
    monkeypatch.setattr("flows.page.app.LARGEST_UPLOAD", 100)
    assert "smaller picture" in page.post("/api/near", content=png(1), headers=ORDER).json()["error"]
    assert asked(page, "/api/generate", ids=[]).status_code == 422


def test_other_sites_and_strangers_are_kept_out(page: TestClient, recipe: Recipe) -> None:  # noqa: F811
    assert page.post("/api/withdraw", json={"ids": [0], "reason": "x"}).status_code == 403
    assert page.get("/api/about", headers={"Host": "evil.example:7860"}).status_code == 403
    guarded = TestClient(make_app(recipe, None, "0.0.0.0", "secret", None), base_url="http://server.example")
    assert guarded.get("/").status_code == 401
    assert guarded.get("/", auth=("me", "wrong")).status_code == 401
    assert guarded.get("/api/about", auth=("me", "secret")).status_code == 200
    refused = CliRunner().invoke(command, ["explore", "emoji", "--host", "0.0.0.0"], env={"GMEM_EXPLORE_PASSWORD": ""})
    assert refused.exit_code != 0 and "GMEM_EXPLORE_PASSWORD" in str(refused.exception)
