"""The page in a browser, really clicked. Skipped where there is no Chromium, or no playwright (`pip install playwright`)."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image

from flows.page.app import make_app
from flows.recipe.model import Recipe
from infra.processes import free_ports
from tests.flows.commands.conftest import PICTURES, encoder, picture, recipe  # noqa: F401  (fixtures)

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
SECONDS = 120


@pytest.fixture
def page(recipe: Recipe) -> Iterator[Any]:  # noqa: F811
    """The page of the bank, with a network that needs 3 calls, in a browser."""
    (port,) = free_ports(1)
    quick = recipe.model_copy(update={"sample": recipe.sample.model_copy(update={"steps": 4})})
    app = make_app(quick, None, "127.0.0.1", None, "shipped:emoji-network")
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1400, "height": 900})
        opened.set_default_timeout(1000 * SECONDS)
        problems: list[str] = []
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.goto(f"http://127.0.0.1:{port}")
        said(opened, "pictures. Click one")
        yield opened
        browser.close()
    server.should_exit = True
    thread.join()
    assert not problems


def said(page: Any, text: str) -> None:
    """Waits until the page says so."""
    playwright.expect(page.locator("#say")).to_contain_text(text, timeout=1000 * SECONDS)


def find(page: Any, text: str, where: str = "") -> None:
    page.fill("#text", text)
    page.fill("#where", where)
    page.click("#search")
    said(page, "found")


def test_found_chosen_generated_and_walked_between(page: Any) -> None:
    find(page, "number3")
    assert "food" in page.text_content("#found figure")
    page.click("#found figure")
    find(page, "", "class = 'flags' AND NOT flipped")
    assert page.locator("#found figure").count() == PICTURES // 2
    page.click("#found figure:nth-child(2)")
    assert page.text_content("#count") == "(2)"
    page.select_option("#beside", "version")
    page.click("#generate")
    said(page, "2 generated")
    assert page.locator("#made h2").all_text_contents()[2].startswith("of the bank's version newest, step 2480")
    assert page.locator("#made img").count() == 6
    page.click("#walk")
    said(page, "slide between them")
    before = page.locator("#made > img").get_attribute("src")
    page.locator("#slider").fill("4")
    assert page.locator("#made > img").get_attribute("src") != before
    page.select_option("#beside", "prior")
    page.click("#generate")
    said(page, "has no prior in")


def test_a_picture_is_dropped_in_added_withdrawn_and_seen_in_the_past(page: Any, tmp_path: Path) -> None:
    Image.fromarray(picture(100)).save(tmp_path / "mine.png")
    page.set_input_files("#picture", str(tmp_path / "mine.png"))
    said(page, "found")
    page.click("#add")
    said(page, "added as row")
    page.on("dialog", lambda dialog: dialog.accept("a trial"))
    page.click("#withdraw")
    said(page, "withdrawn: 1 rows")
    versions = page.locator("#at option").all_text_contents()
    assert [each.partition(" ")[2] for each in versions] == ["", "withdraw", "append", "built"]
    page.select_option("#at", index=2)
    said(page, "the bank as it was in version")
    find(page, "", "origin = 'external'")
    assert page.locator("#found figure").count() == 1
