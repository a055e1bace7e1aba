"""The page in a headless Chromium without a network: what a visitor sees, and that nothing of it stays."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tools import verify

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
WAIT = 60_000  # milliseconds
ROOT = Path(__file__).resolve().parents[2]


class Site(NamedTuple):
    address: str
    weight: Path
    pictures: list[str]
    uploads: Path


def serve(weight: Path, folder: Path, *words: str) -> tuple[subprocess.Popen, str]:
    """Start the page on a free port, with temporary files in `folder`."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "tools.app", "--weight", str(weight), "--device", "cpu", "--port", str(port)]
    environment = os.environ | {"TMPDIR": str(folder)}
    server = subprocess.Popen([*command, *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    line = server.stdout.readline()
    assert line.startswith("http://"), line
    return server, line.split()[0]


@pytest.fixture(scope="module")
def site(trained, tmp_path_factory) -> Iterator[Site]:
    weight, _, benchmark = trained
    folder = tmp_path_factory.mktemp("uploads")
    pictures = [sample.path for sample in benchmark.trials[0].gallery]
    server, address = serve(weight, folder, "--no-cache", "--gallery", str(Path(pictures[0]).parent))
    yield Site(address, weight, pictures, folder)
    server.send_signal(signal.SIGTERM)
    assert server.wait(WAIT / 1000) == 0
    assert not list(folder.iterdir())


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@pytest.fixture
def page(site, browser) -> Iterator[Page]:
    """The page, newly loaded; it may ask nobody but its own server."""
    foreign = []
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.on("request", lambda request: foreign.append(request.url) if is_foreign(request.url, site.address) else None)
    page.goto(site.address)
    yield page
    page.close()
    assert foreign == []


def is_foreign(url: str, address: str) -> bool:
    return not url.startswith((address, "data:", "blob:"))


def upload(page: Page, name: str, file: str | Path) -> None:
    """Choose a file, and wait until the server has it."""
    with page.expect_response(lambda response: "/upload" in response.url and response.request.method == "POST"):
        page.locator(f"#{name} input[type=file]").set_input_files(str(file))
    page.locator(f"#{name} img").wait_for(state="attached", timeout=WAIT)


def left(site: Site, pattern: str) -> list[Path]:
    return [path for path in site.uploads.rglob(pattern) if path.is_file()]


def show(page: Page, tab: str) -> None:
    page.get_by_role("tab", name=tab).click()


def picture_of(page: Page, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        page.wait_for_timeout(500)
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_two_pictures_get_the_score_that_the_tool_prints(site, page, capsys, tmp_path):
    a, b = tmp_path / "mine_1.jpg", tmp_path / "mine_2.jpg"
    for source, target in ((site.pictures[0], a), (site.pictures[-1], b)):
        target.write_bytes(Path(source).read_bytes())
    upload(page, "first", a)
    upload(page, "second", b)
    assert left(site, "mine_*")
    page.get_by_role("button", name="Compare").click()
    found = page.get_by_test_id("cosine")
    expect(found).to_be_visible(timeout=WAIT)
    picture_of(page, "verify")
    verify.main(["--weight", str(site.weight), "--device", "cpu", str(a), str(b)])
    assert f"cosine {found.inner_text()}" in capsys.readouterr().out
    expect(page.get_by_text("no threshold is known")).to_be_visible()
    expect(page.locator(".pictures img")).to_have_count(4)
    assert not left(site, "mine_*")


def test_a_search_finds_the_picture_itself_first(site, page, tmp_path):
    query = tmp_path / "mine.jpg"
    query.write_bytes(Path(site.pictures[2]).read_bytes())
    show(page, "Search")
    upload(page, "query", query)
    page.get_by_role("button", name="Search", exact=True).click()
    first = page.locator(".pictures:visible").nth(1).locator("figcaption").first
    expect(first).to_contain_text(Path(site.pictures[2]).name, timeout=WAIT)
    expect(first).to_contain_text("1. 1.0000")
    picture_of(page, "search")
    assert not left(site, "mine*")


def test_pictures_of_the_gallery_are_examples(site, page):
    page.get_by_role("button", name="Try two pictures of the gallery").click()
    expect(page.get_by_test_id("cosine")).to_be_visible(timeout=WAIT)
    show(page, "Search")
    page.locator(".thumbnail-item").nth(1).click()
    expect(page.locator(".pictures:visible").nth(1).locator("figcaption").first).to_contain_text(
        "1. 1.0000", timeout=WAIT
    )


@pytest.mark.parametrize("name", ["broken.jpg", "cut.png", "page.svg"])
def test_a_broken_file_gets_one_clear_line(site, page, tmp_path, name):
    whole = tmp_path / "whole.png"
    Image.open(site.pictures[0]).save(whole)
    contents = {"broken.jpg": b"no image", "cut.png": whole.read_bytes()[:1500], "page.svg": b"<svg></svg>"}
    (tmp_path / name).write_bytes(contents[name])
    upload(page, "first", tmp_path / name)
    upload(page, "second", site.pictures[0])
    page.get_by_role("button", name="Compare").click()
    said = page.get_by_role("alert")
    expect(said).to_contain_text(re.compile(rf"^{name}: cannot be read"), timeout=WAIT)
    assert "\n" not in said.inner_text() and str(site.uploads) not in said.inner_text()
    assert not left(site, name)


def test_a_missing_picture_and_about(site, page):
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("alert")).to_contain_text("missing", timeout=WAIT)
    show(page, "About")
    expect(page.get_by_text("Digest of the network")).to_be_visible()
    picture_of(page, "about")


def test_without_a_gallery_the_tab_says_how_to_start_with_one(site, browser, tmp_path):
    server, address = serve(site.weight, tmp_path)
    try:
        page = browser.new_page()
        page.goto(address)
        show(page, "Search")
        expect(page.get_by_text("--gallery FOLDER")).to_be_visible()
        taken = [sys.executable, "-m", "tools.app", "--weight", str(site.weight), "--port", address.rpartition(":")[2]]
        done = subprocess.run(taken, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and "--port" in done.stderr and done.stderr.count("\n") == 1
    finally:
        server.terminate()
        server.wait(WAIT / 1000)
