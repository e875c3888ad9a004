"""``gmem bank`` and ``gmem sample`` on a real bank of the shipped encoder and a small network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.engine.stage import Plan
from flows.explore import open_bank
from flows.incoming import encode_picture
from flows.recipe.model import Recipe
from flows.stages.bank.stage import BANK
from gmem.network import Network, NetworkConfig
from storage.store import Store
from storage.tables.bank import Bank

from .conftest import PICTURES, answered, picture, refused, run


def ids(answer: dict[str, Any]) -> list[int]:
    return [row["id"] for row in answer["rows"]]


def test_search_by_row_picture_words_and_condition(recipe: Recipe, tmp_path: Path) -> None:
    assert ids(answered(recipe, "bank", "search", "--row", "4"))[0] == 4
    Image.fromarray(picture(3)).save(tmp_path / "mine.png")
    found = answered(recipe, "bank", "search", str(tmp_path / "mine.png"), "-k", "2")
    assert ids(found)[0] == 6 and found["rows"][0]["_distance"] < 1e-5
    assert Path(found["sheet"]).read_bytes().startswith(b"\x89PNG")
    found = answered(recipe, "bank", "search", "--text", "food", "--where", "NOT flipped")
    assert sorted(ids(found)) == [2, 6, 10] and {row["class"] for row in found["rows"]} == {"food"}
    assert len(ids(answered(recipe, "bank", "search", "--where", "class = 'flags'"))) == 6
    table = run(recipe, "bank", "search", "--row", "4")
    assert "flags/2" in table.stdout and "contact sheet: " in table.stdout


def test_an_empty_answer_is_an_answer(recipe: Recipe) -> None:
    for arguments in (["--row", "4", "--where", "label = 99"], ["--where", "class = 'x'"], ["--text", "nobody"]):
        assert answered(recipe, "bank", "search", *arguments) == {"sheet": None, "rows": []}
        assert run(recipe, "bank", "search", *arguments).exit_code == 0


def test_rows_are_exported_and_imported_again(recipe: Recipe, tmp_path: Path) -> None:
    written = answered(recipe, "bank", "export", str(tmp_path / "mine.npy"), "--where", "class = 'flags'")
    assert written["rows"] == 6 and "mine.npy is there already" in refused(
        recipe, "bank", "export", str(tmp_path / "mine.npy")
    )
    done = CliRunner().invoke(app, ["bank", "import", str(tmp_path / "mine.npy"), "--store", recipe.store, "--json"])
    imported = open_bank(recipe, json.loads(done.stdout.splitlines()[-1])["uri"])
    ours = open_bank(recipe)
    same = ours.snippets(ours.matching("class = 'flags'").tolist())
    assert torch.equal(imported.snippets(imported.matching().tolist()), same)


def test_rows_are_shown_by_their_ids(recipe: Recipe) -> None:
    assert ids(answered(recipe, "bank", "show", "--ids", "7, 2")) == [7, 2]
    assert "no row 99" in refused(recipe, "bank", "show", "--ids", "7,99")
    assert "whole numbers" in refused(recipe, "bank", "show", "--ids", "7,x")


def test_a_folder_of_pictures_is_added_once(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "folder" / "flags"
    folder.mkdir(parents=True)
    for number in (2, 100, 101):
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    arguments = ("bank", "add", str(folder.parent), "--name", "holiday", "--reason", "for the calendar")
    added = answered(recipe, *arguments)
    assert len(added["ids"]) == 2 and list(added["duplicates"].values()) == ["flags/2"]
    assert list(added["unusable"]) == ["flags/broken.png"]
    (row, _) = answered(recipe, "bank", "search", "--text", "holiday")["rows"]
    assert (row["origin"], row["class"], row["label"], row["key"]) == ("external", "flags", 0, "holiday/flags/100")
    again = run(recipe, *arguments)
    assert "0 pictures added as holiday/…, 4 left out" in again.stdout and "there already as holiday/fl" in again.stdout
    assert "batch name" in refused(recipe, "bank", "add", str(folder), "--name", "a/b")
    (tmp_path / "empty").mkdir()
    refused(recipe, "bank", "add", str(tmp_path / "empty"), "--name", "x")
    refused(recipe, "bank", "add", str(tmp_path / "nowhere"), "--name", "x")
    assert len(open_bank(recipe)) == 2 * PICTURES + 2


def test_edits_are_told_by_the_history_and_can_be_undone(recipe: Recipe) -> None:
    built = answered(recipe, "bank", "tag", "built")["version"]
    made = answered(recipe, "bank", "mix", "--ids", "2,6", "--weights", "1,3", "--reason", "why not")["id"]
    gone = answered(recipe, "bank", "withdraw", "--where", "key = 'food/1'", "--reason", "asked for")
    assert (gone["asked"], gone["mirrored"], gone["descended"], gone["rows"]) == ([2, 3], [], [made], 10)
    changes = answered(recipe, "bank", "history")["changes"]
    assert [(c["kind"], c["reason"]) for c in changes] == [
        ("built", None), ("append", "why not"), ("withdraw", "asked for"),
    ]  # fmt: skip
    assert changes[0]["tags"] == ["built"]
    assert "withdraw" in run(recipe, "bank", "history").stdout
    assert answered(recipe, "bank", "diff", "built")["removed"] == [2, 3]
    assert "food/1" in run(recipe, "bank", "diff", "built").stdout
    assert ids(answered(recipe, "bank", "search", "--row", "2", "--at", "built"))[0] == 2
    assert "no row 2" in refused(recipe, "bank", "search", "--row", "2")
    assert answered(recipe, "bank", "restore", str(built))["rows"] == 12
    assert answered(recipe, "bank", "info")["rows"] == 12
    about = run(recipe, "bank", "info").stdout
    assert "none: a search reads every row" in about and "unindexed" not in about and "None" not in about
    assert answered(recipe, "bank", "optimise")["index"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search"], "say what to search for"),
        (["search", "--row", "1", "--text", "x"], "say what to search for"),
        (["search", "--row", "99"], "no row 99"),
        (["search", "--where", "colour = 3"], "columns are id, key"),
        (["search", "--where", "x'; DROP TABLE bank"], "not one SQL condition"),
        (["search", "--text", " "], "no words"),
        (["search", "nowhere.png"], "not a file"),
        (["mix", "--ids", "2"], "at least 2 parents"),
        (["mix", "--ids", "2,99"], "no row 99"),
        (["mix", "--ids", "2,4", "--method", "blend"], "'blend' is unknown"),
        (["mix", "--ids", "2,4", "--weights", "1"], "1 weights do not fit 2"),
        (["mix", "--ids", "2,4", "--weights", "1,nan"], "from 0 up"),
        (["mix", "--ids", "2,4", "--weights", "1,x"], "are no numbers"),
        (["withdraw", "--where", "true", "--reason", "x"], "all 12 rows"),
        (["withdraw", "--where", "class = 'flgas'", "--reason", "x"], "no row fits"),
        (["withdraw", "--ids", "2", "--reason", ""], "the reason"),
        (["withdraw", "--reason", "x"], "either ids or a condition"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(recipe: Recipe, arguments: list[str], words: str) -> None:
    assert words in refused(recipe, "bank", *arguments)
    assert len(open_bank(recipe).history()) == 1


def test_a_version_that_is_not_there_is_refused(recipe: Recipe) -> None:
    for version in ("999", "nobody", "2001-01-01"):
        result = run(recipe, "bank", "info", "--at", version)
        assert isinstance(result.exception, ValueError) and "\n" not in str(result.exception)


def test_a_bank_is_named_by_its_fingerprint(recipe: Recipe) -> None:
    fingerprint = Plan(recipe).fingerprint(BANK)
    assert answered(recipe, "bank", "info", "--bank", fingerprint)["rows"] == 12
    assert "no bank of fingerprint" in refused(recipe, "bank", "info", "--bank", "0" * 12)


def test_pictures_of_another_encoder_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    Image.fromarray(picture(3)).save(tmp_path / "mine.png")
    other = Bank.create(str(tmp_path / "bank" / f"other-{'0' * 12}"), 192, {"name": "other", "sha256": "0"})
    with pytest.raises(ValueError, match="was made by the encoder other"):
        encode_picture(tmp_path / "mine.png", recipe, other)


def test_samples_of_a_condition_and_of_a_way_between_rows(recipe: Recipe, encoder: Any, tmp_path: Path) -> None:
    from flows.exchange.importing import import_network

    torch.manual_seed(0)
    shape: dict[str, Any] = {"latent_channels": 12, "latent_size": 8, "snippet_dim": encoder.dim}
    torch.save(Network(NetworkConfig.of("T", **shape)).state_dict(), tmp_path / "small.pt")
    torch.save({"mean": torch.zeros(12), "std": torch.ones(12)}, tmp_path / "stats.pt")
    network = import_network(tmp_path / "small.pt", Store(recipe.store), latent_stats=str(tmp_path / "stats.pt"))
    more = ("--network", network.uri, "--set", "sample.steps=2")

    found = answered(recipe, "sample", *more, "--where", "class = 'flags'", "--count", "3", "--out", "some.png")
    assert sorted(found["ids"]) == [0, 4, 8] and Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    assert set(answered(recipe, "sample", *more, "--count", "4")["ids"]) == {2, 4, 8, 10}
    balanced = answered(recipe, "sample", *more, "--count", "2", "--balanced-by", "class")["ids"]
    assert {i // 2 % 2 for i in balanced} == {0, 1}
    reduced = answered(recipe, "bank", "factorise", "--rank", "8")["uri"]
    assert "rank" in run(recipe, "bank", "info", "--bank", reduced).stdout
    again = answered(recipe, "sample", *more, "--bank", reduced, "--where", "class = 'flags'", "--count", "3")
    assert sorted(again["ids"]) == [0, 4, 8]
    plain, moved, between = (
        Path(answered(recipe, "sample", *more, "--id", "2", "--out", "one.png", *vary)["picture"]).read_bytes()
        for vary in ((), ("--noise", "0.5"), ("--neighbours", "2"))
    )
    assert len({plain, moved, between}) == 3
    Image.fromarray(picture(77)).save(tmp_path / "mine.png")
    mine = answered(recipe, "sample", *more, "--picture", "mine.png", "--count", "3", "--out", "mine")
    assert mine["ids"] == [] and Path(mine["picture"]).name == "sheet.png"
    made = [np.asarray(Image.open(tmp_path / "mine" / f"{number:04d}.png")) for number in range(3)]
    assert made[0].shape == (64, 64, 3) and (made[0] != made[1]).any(), "of one snippet, by noise of their own"
    assert answered(recipe, "sample", *more, "--key", "flags/2", "--count", "2")["ids"] == [4, 4]
    walked = answered(recipe, "sample", *more, "--mix", "2,6", "--steps", "3", "--out", "way.png")
    assert walked["ids"] == [2, 6] and Image.open(walked["picture"]).width > Image.open(walked["picture"]).height
    assert len(open_bank(recipe).history()) == 1, "a walk adds nothing"

    for arguments, words in (
        (["--split", "x' OR 'a' = 'a"], "split is one of held_out, train"),
        (["--split", "o'clock"], "split is one of held_out, train"),
        (["--where", "class = 'flgas'"], "class is one of flags, food"),
        (["--where", "true) OR (true", "--split", "train"], "not one SQL condition"),
        (["--where", "id = 2", "--mix", "2,6"], "one of them"),
        (["--key", "flags/2", "--picture", "mine.png"], "one of them"),
        (["--key", "flags/99"], "no row of the key 'flags/99'"),
        (["--picture", "nowhere.png"], "nowhere.png is not a file"),
        (["--mix", "2"], "give 2 ids"),
        (["--mix", "2,99"], "no row 99"),
        (["--balanced-by", "colour"], "cannot be balanced by"),
        (["--prior"], "has no prior in"),
        (["--prior", "--split", "train"], "leave --id, --mix, --where, --split and the like away"),
        (["--class", "flags"], "--class goes with --prior"),
        (["--prior", "--noise", "0.5"], "leave --prior, --mix and --picture away"),
        (["--mix", "2,6", "--neighbours", "3"], "leave --prior, --mix and --picture away"),
        (["--id", "2", "--noise", "inf"], "the size of noise is inf; give a number from 0 up"),
    ):
        assert words in refused(recipe, "sample", *more, *arguments)
