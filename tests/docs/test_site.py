"""The site: it builds without a warning, loads nothing from elsewhere, and has no dead link."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import tieops
import tieops.torch
from fixtures.site import EXPLORED
from tests.support.browsers import CHROMIUM, DRIVER
from tests.support.markdown import BLOCK, PAGES, ROOT
from tests.support.pages import open_browser
from tieops import errors

pytestmark = pytest.mark.slow

EXTERNAL = {
    "https://filesystem-spec.readthedocs.io",
    "https://github.com/Quantco/spox",
    "https://github.com/dagrejs/dagre",
    "https://github.com/onnx/ir-py",
    "https://github.com/patrick-kidger/equinox",
    "https://github.com/xdslproject/xdsl",
}
"""Where the pages lead outside. Nobody follows these here: the tests have no network."""
LINK = re.compile(r"\]\(\s*<?([^)>\s]+)>?[^)]*\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
LOADED = {"script", "img", "iframe", "source", "video", "audio", "embed", "object", "link"}
IN_CSS = re.compile(r"(?:url\(|@import)\s*[\"']?\s*([^\"')\s]+)")
NAMES = [
    *(f"tieops.{name}" for name in tieops.__all__),
    *(f"tieops.torch.{name}" for name in tieops.torch.__all__),
    *(f"tieops.errors.{name}" for name in errors.__all__),
]


@dataclass
class Html(HTMLParser):
    """What a page of the site defines and refers to."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            if name in ("href", "src", "srcset", "data", "poster") and value is not None:
                self.links.append(value)
                if tag in LOADED:
                    self.loaded.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site in strict mode: a warning is an error."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    return {path: Html(path) for path in sorted(site.rglob("*.html"))}


def is_external(link: str) -> bool:
    parts = urlsplit(link)
    return bool(parts.scheme or parts.netloc)


def broken(site: Path, pages: dict[Path, Html], page: Html) -> Iterator[str]:
    """Yield the links of a page that lead to no file, or to no place in it."""
    for link in page.links:
        if is_external(link):
            continue
        parts = urlsplit(link)
        # 404.html is shown for any address, so its links begin at the site's root.
        start = site if parts.path.startswith("/") else page.path.parent
        target = (start / unquote(parts.path).lstrip("/")).resolve() if parts.path else page.path
        target = target / "index.html" if target.is_dir() else target
        is_place = not parts.fragment or (
            target in pages and unquote(parts.fragment) in pages[target].ids
        )
        if not (target.is_file() and is_place):
            yield link


def test_every_link_of_the_site_leads_to_a_place_in_a_file(site, pages):
    assert sum(len(page.links) for page in pages.values()) > 1000
    found = {
        str(path.relative_to(site)): list(broken(site, pages, page)) for path, page in pages.items()
    }
    assert {name: links for name, links in found.items() if links} == {}


def test_a_broken_link_is_found(site, pages, tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<a href="gone.html"></a><a href="#gone"></a><i id="here"></i><a href="#here">')
    known = {page: Html(page)}
    assert list(broken(tmp_path, known, known[page])) == ["gone.html", "#gone"]


def test_no_page_and_no_style_loads_anything_from_elsewhere(site, pages):
    loaded = [link for page in pages.values() for link in page.loaded]
    for style in site.rglob("*.css"):
        loaded += IN_CSS.findall(style.read_text("utf-8"))
    assert len(loaded) > 100
    assert [link for link in loaded if is_external(link) and not link.startswith("data:")] == []


def test_every_public_name_has_a_place_in_the_reference(site):
    documented = inventory(site)
    assert [name for name in NAMES if canonical(name) not in documented] == []


@pytest.mark.parametrize("name", [name for name in NAMES if ".errors." not in name])
def test_what_a_public_name_returns_has_a_place_in_the_reference(site, name):
    public = resolve(name)
    module = sys.modules[public.__module__]
    words = re.findall(r"\w+", str(public.__annotations__.get("return", "")))
    found = [getattr(module, word, None) for word in words]
    ours = [each for each in found if isinstance(each, type) and is_ours(each)]
    assert [
        each for each in ours if f"{each.__module__}.{each.__qualname__}" not in inventory(site)
    ] == []


@cache
def inventory(site: Path) -> set[str]:
    """Return every name in the index that other projects' documentation can refer to."""
    data = (site / "objects.inv").read_bytes()
    text = zlib.decompress(data[data.index(b"zlib.\n") + len(b"zlib.\n") :]).decode()
    return {line.partition(" ")[0] for line in text.splitlines()}


def resolve(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def canonical(name: str) -> str:
    """Return where a public name is defined: the index has that too."""
    public = resolve(name)
    return f"{public.__module__}.{public.__qualname__}"


def is_ours(public: type) -> bool:
    return public.__module__.partition(".")[0] == "tieops"


def test_the_gallery_leads_to_pages_to_explore(pages, site):
    gallery = pages[site / "gallery.html"]
    assert {f"gallery/{name}.html" for name in EXPLORED} <= set(gallery.links)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_source_lead_somewhere_on_a_code_host_too(page):
    text = BLOCK.sub("", page.read_text("utf-8"))
    for link in LINK.findall(text):
        parts = urlsplit(link)
        if is_external(link):
            assert link in EXTERNAL
            assert parts.scheme == "https"
            continue
        target = (page.parent / parts.path).resolve() if parts.path else page
        assert target.is_relative_to(ROOT)
        assert target.is_file(), link
        if parts.fragment:
            headings = HEADING.findall(BLOCK.sub("", target.read_text("utf-8")))
            assert parts.fragment in map(slug, headings), link


def slug(heading: str) -> str:
    """Return the anchor that code hosts and MkDocs give a heading."""
    return re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")


@pytest.mark.browser
def test_opened_from_a_folder_the_site_is_quiet_and_can_be_searched(site, tmp_path):
    with open_browser(CHROMIUM or "chromium", DRIVER or "chromedriver", tmp_path) as page:
        page.open(site / "index.html")
        page.find("label[for=__search]")
        page.run("document.querySelector('[data-md-component=search-query]').focus()")
        page.find("[data-md-component=search-query]").send_keys("disconnected output")
        page.driver.implicitly_wait(20)
        assert page.all(".md-search-result__item a")
        assert page.errors() == []


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.mark.browser
def test_served_the_site_loads_nothing_from_elsewhere(site, pages, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/"
    with open_browser(CHROMIUM or "chromium", DRIVER or "chromedriver", tmp_path) as page:
        for path in pages:
            page.driver.get(home + path.relative_to(site).as_posix())
            loaded = page.run("return performance.getEntriesByType('resource').map((e) => e.name)")
            assert [link for link in loaded if not link.startswith((home, "data:"))] == []
            assert loaded or path.parent.name == "gallery"  # those have everything inside
            assert page.errors() == [], path.name
    server.shutdown()
    server.server_close()


@pytest.mark.browser
def test_no_page_is_wider_than_a_phone(site, pages, tmp_path):
    with (
        open_browser(CHROMIUM or "chromium", DRIVER or "chromedriver", tmp_path) as page,
        page.phone(),
    ):
        for path in pages:
            if path.parent.name != "gallery":  # those have a canvas of their own
                page.open(path)
                assert page.run("return document.documentElement.scrollWidth") <= 390, path.name
