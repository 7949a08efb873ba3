"""The page in Chromium and Firefox: it opens, folds, searches, highlights, nothing overlaps."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import tieops
from fixtures.gallery import GALLERY, Shown
from tests.support import browsers
from tests.support.firefox import open_firefox
from tests.support.pages import Page, open_browser

pytestmark = pytest.mark.browser

SLACK = 1.5
"""Pixels that a glyph may reach out of its box."""


@pytest.fixture(scope="module", params=["chromium", *(["firefox"] if browsers.FIREFOX else [])])
def page(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    profile = tmp_path_factory.mktemp("profile")
    if request.param == "firefox":
        with open_firefox(browsers.FIREFOX, profile) as opened:
            yield opened
        return
    chromium, driver = browsers.CHROMIUM, browsers.DRIVER
    assert chromium, "the tests of the page need Chromium: install Debian's chromium"
    assert driver, "the tests of the page need chromedriver: install Debian's chromium-driver"
    with open_browser(chromium, driver, profile) as opened:
        yield opened


@pytest.fixture(autouse=True)
def quiet(page: Page) -> Iterator[None]:
    page.errors()
    page.media("prefers-color-scheme", "light")
    yield
    assert page.errors() == []


@pytest.fixture(scope="module")
def shown(request: pytest.FixtureRequest) -> dict[str, Shown]:
    class Lazy(dict[str, Shown]):
        def __missing__(self, name: str) -> Shown:
            assert request.config.cache is not None
            self[name] = GALLERY[name](request.config.cache.mkdir("wheels"))
            return self[name]

    return Lazy()


@pytest.fixture
def open_shown(page: Page, shown: dict[str, Shown], tmp_path: Path):
    def open_it(name: str) -> Page:
        each = shown[name]
        path = tmp_path / f"{name}.html"
        page.open(tieops.render(each.model, path, before=each.before, title=each.title))
        return page

    return open_it


def overlaps(a: list[float], b: list[float]) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > 1 and min(a[3], b[3]) - max(a[1], b[1]) > 1


def check_geometry(page: Page) -> None:
    """Nothing overlaps, no text reaches out of its box."""
    for pane in page.geometry():
        assert pane["boxes"]
        check_pane(pane["boxes"] + [{"key": "label", **label} for label in pane["labels"]])


def check_pane(boxes: list[dict[str, Any]]) -> None:
    for one, other in itertools.combinations(boxes, 2):
        assert not overlaps(one["box"], other["box"]), (one, other)
    for each in boxes:
        left, top, right, bottom = each["box"]
        for text, x0, y0, x1, y1 in each["texts"]:
            assert min(x0 - left, right - x1) > -SLACK, (text, each)
            assert min(y0 - top, bottom - y1) > -SLACK, (text, each)
        rows = [text for text in each["texts"] if text[0]]
        for one, other in itertools.combinations(rows, 2):
            assert not overlaps(one[1:], other[1:]), (one, other)


def picture(page: Page) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB"))


def colours(image: np.ndarray) -> int:
    return len(np.unique(image.reshape(-1, 3), axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("name", GALLERY)
def test_nothing_overlaps_and_no_label_is_clipped(open_shown, name):
    page = open_shown(name)
    check_geometry(page)
    assert colours(picture(page)) > 20, "an empty page"
    ties = {button.get_attribute("data-mark") for button in page.all("#ties button")}
    drawn = {chip.get_attribute("data-parameter") for chip in page.all("#panes .chip")}
    assert bool(ties) == bool(drawn)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "t5", "albert", "silero_vad", "rxnmapper"])
def test_unfolded_as_well(open_shown, name):
    page = open_shown(name)
    rng = np.random.default_rng(0)
    for _ in range(4):
        folded = [key for key in page.shown() if key.startswith("g")]
        if not folded:
            break
        before = len(page.shown())
        page.click(folded[rng.integers(len(folded))])
        assert len(page.shown()) > before
        check_geometry(page)


def test_a_click_unfolds_a_repeated_block_and_folds_it_again(open_shown):
    page = open_shown("gpt2")
    before = page.shown()
    (repeat,) = page.shown("#panes .unit.repeat")
    assert "×12" in page.find(f'[data-key="{repeat}"]').text
    page.click(repeat)
    blocks = page.shown("#panes .unit.block")
    assert len(blocks) == 12
    page.click(blocks[3])
    assert "attn.c_attn" in page.find("#panes").text
    check_geometry(page)
    page.click(f"f{blocks[3][1:]}")
    page.click(f"f{repeat[1:]}")
    assert page.shown() == before


def test_a_tie_of_the_list_brings_out_its_readers_and_nothing_else(open_shown):
    page = open_shown("autoencoder")
    first, *_ = page.all("#ties button")
    first.click()
    assert first.get_attribute("aria-pressed") == "true"
    lit = {each.get_attribute("aria-label") for each in page.all("#panes .unit.lit")}
    assert {"encoder.0 Linear", "parameter encoder.0.weight"} <= lit
    assert len(lit) == 3  # the parameter, its reader, and the one that reads it transposed
    assert len(page.all("#panes .link.lit")) == 2
    assert "evidence" in page.find("#details").text
    dim = page.find("#panes .unit.input")
    assert float(dim.value_of_css_property("opacity")) < 0.5
    page.find("body").send_keys(Keys.ESCAPE)
    assert page.all("#panes .unit.lit") == []


def test_a_search_finds_what_is_folded_and_goes_there(open_shown):
    page = open_shown("gpt2")
    page.find("body").send_keys("/")
    page.driver.switch_to.active_element.send_keys("h.7.mlp.c_fc")
    assert len(page.all("#panes .unit.lit")) == 1  # the folded block that holds it
    assert page.all("#found button")
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    active = page.driver.switch_to.active_element
    assert active.get_attribute("aria-label") == "transformer.h.7.mlp.c_fc Linear"
    assert active.is_displayed()
    place = page.run("return arguments[0].getBoundingClientRect()", active)
    assert 0 <= place["top"] <= place["bottom"] <= page.run("return innerHeight")
    page.find("#search").clear()
    page.find("#search").send_keys("no such layer")
    assert page.find("#found").text == "nothing found"


def test_the_keyboard_reaches_everything(open_shown):
    page = open_shown("gpt2")
    (repeat,) = page.shown("#panes .unit.repeat")
    page.run("arguments[0].focus()", page.find(f'[data-key="{repeat}"]'))
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert len(page.shown("#panes .unit.block")) == 12
    active = page.driver.switch_to.active_element
    assert active.get_attribute("data-key") == f"f{repeat[1:]}", "the focus is lost"
    active.send_keys(Keys.ARROW_DOWN)
    below = page.driver.switch_to.active_element.get_attribute("data-key")
    assert below not in (None, f"f{repeat[1:]}")
    page.run("arguments[0].focus()", page.find(f'[data-key="f{repeat[1:]}"]'))
    page.driver.switch_to.active_element.send_keys(" ")
    assert page.shown("#panes .unit.repeat") == [repeat]
    width = page.find("#panes svg").size["width"]
    page.find("body").send_keys("+")
    assert page.find("#panes svg").size["width"] > width


def test_hovering_and_tapping_tell_shapes_names_and_evidence(open_shown):
    page = open_shown("tied")
    page.hover('[aria-label="emb Embedding"]')
    assert "Embedding" in page.find("#details").text
    page.tap('[aria-label="fc Linear"]')
    details = page.find("#details").text
    for word in ("fc", "f32[300,1000]", "emb.weight", "transpose", "takes", "gives"):
        assert word in details
    page.tap('[aria-label^="parameter emb.weight"]')
    for word in ("emb.weight = fc.weight", "object", "1.20 MB"):
        assert word in page.find("#details").text


def test_before_and_after_stand_side_by_side_in_the_same_colours(open_shown):
    page = open_shown("transfer")
    before, after = page.all("#panes section")
    assert before.rect["x"] + before.rect["width"] <= after.rect["x"] + 1
    changes = page.find("#changes").text
    for told in ("new: layer fcNew", "gone: layer fc", "no longer read emb.weight"):
        assert told in changes
    for section, status, name in ((before, "gone", "fc"), (after, "new", "fcNew")):
        unit = section.find_element(By.CSS_SELECTOR, f'.unit.{status}[aria-label="{name} Linear"]')
        assert status in unit.text
    fills = {chip.get_attribute("fill") for chip in page.all("#panes .unit .chip rect")}
    assert len(fills) == 1  # emb.weight, before and after
    assert [h.text for h in page.all("section > h2")] == ["before: 1 tie", "after: no ties"]


def test_dark_mode_is_dark_and_readable(open_shown):
    page = open_shown("autoencoder")
    light = picture(page).mean()
    page.media("prefers-color-scheme", "dark")
    dark = picture(page)
    assert light > 200 > 90 > dark.mean()
    assert dark.max() > 200
    assert page.find("#panes .title").value_of_css_property("fill") == "rgb(228, 233, 240)"


def test_a_phone_has_no_sideways_scrolling_and_shows_details(open_shown):
    page = open_shown("transfer")
    with page.phone():
        open_shown("transfer")
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")
        sections = page.all("#panes section")
        assert sections[0].rect["y"] + sections[0].rect["height"] <= sections[1].rect["y"] + 1
        check_geometry(page)
        page.click(page.shown("#panes .unit.lit, #panes .unit.tied")[0])
        sheet = page.run("return arguments[0].getBoundingClientRect()", page.find("#details"))
        assert sheet["width"] <= page.run("return innerWidth") <= 500
        # At the foot of the screen, not below it.
        assert abs(sheet["bottom"] - page.run("return innerHeight")) < 2


def long_chain(nodes: int, kinds: int) -> onnx_ir.Model:
    """Return a chain of operators without names or repetition, with a tie from end to end."""
    rng = np.random.default_rng(0)
    ops = rng.choice(["Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Exp"][:kinds], nodes)
    lines = ["h0 = MatMul(x, w)"]
    for i, op in enumerate(ops):
        body = f"MatMul(h{i}, w{i % 40})" if i % 5 == 0 else f"{op}(h{i})"
        lines.append(f"h{i + 1} = {body}")
    lines += ["t = Transpose <perm = [1, 0]> (w)", f"y = MatMul(h{nodes}, t)"]
    values = " ".join(lines)
    head = '<ir_version: 10, opset_import: ["": 20]> g (float[2, 4] x) => (float[2, 4] y)'
    model = onnx.parser.parse_model(f"{head} {{ {values} }}")
    for i, name in enumerate(["w", *(f"w{i}" for i in range(40))]):
        tensor = rng.standard_normal((4, 4)).astype(np.float32) + i
        model.graph.initializer.append(onnx.numpy_helper.from_array(tensor, name))
    return model


def test_1500_nodes_open_and_unfold(page, tmp_path):
    model = tieops.from_onnx(long_chain(1500, 6))
    path = tieops.render(model, tmp_path / "long.html")
    assert len(model.layers) >= 1500
    page.open(path)
    assert len(page.shown()) < 100
    check_geometry(page)
    page.click(next(key for key in page.shown() if key.startswith("g")))
    check_geometry(page)


HOSTILE = [
    "</script><img src=x onerror=window.hacked=1>",
    "<svg onload=window.hacked=2>",
    '"><script>window.hacked=3</script>',
    "{{script}}<!--",
    "\u202egnp.exe",
    "\u200f\u2066x",
    "name\u2028\u2029end",
    "a" * 10_000,
    "名前" * 200,
    "\x1b[31mred",
]


@pytest.fixture
def hostile() -> tieops.TiedModel:
    graph = onnx_ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 20]>
        g (int64[n] x) => (float[n, 3] y) <float[3, 3] emb = {1,2,3,4,5,6,7,8,9}>
        { h0 = Gather(emb, x)
          h1 = MatMul(h0, emb) h2 = MatMul(h1, emb) h3 = MatMul(h2, emb) h4 = MatMul(h3, emb)
          h5 = MatMul(h4, emb) h6 = MatMul(h5, emb) h7 = MatMul(h6, emb) h8 = MatMul(h7, emb)
          y = MatMul(h8, emb) }""")
    for node, name in zip(graph.graph, HOSTILE, strict=True):
        node.name = name
    graph.graph.inputs[0].name = HOSTILE[0]
    graph.graph.initializers["emb"].metadata_props["tieops.aliases"] = f'["{HOSTILE[1]}"]'
    return tieops.from_onnx(graph)


def test_names_of_a_hostile_model_are_only_text(page, hostile, tmp_path):
    path = tieops.render(hostile, tmp_path / "m.html", before=hostile, title=HOSTILE[0])
    page.open(path)
    assert page.run("return window.hacked") is None
    assert page.all("img, iframe, svg svg, script[src]") == []
    assert len(page.all("script")) == 2
    assert HOSTILE[0] in page.find("h1").text
    check_geometry(page)
    for key in page.shown():
        page.click(key)
    page.find("#search").send_keys("<")
    assert page.all("#found button")
    assert page.run("return window.hacked") is None
    # Direction marks are spelled out, so they cannot turn the text around them.
    assert not re.search("[\u202e\u200f\u2066]", page.run("return document.body.innerText"))


def test_the_policy_stops_a_script_that_got_in(page, hostile, tmp_path):
    path = tieops.render(hostile, tmp_path / "m.html")
    text = path.read_text("utf-8")
    assert "unsafe" not in text.partition("</head>")[0].partition("<style>")[0]
    path.write_text(text.replace("</body>", "<script>window.hacked=1</script></body>"), "utf-8")
    page.open(path)
    assert page.run("return window.hacked") is None
    assert any(re.search("Content[- ]Security[- ]Policy", error) for error in page.errors())


def test_the_page_loads_nothing(open_shown):
    page = open_shown("tied")
    assert page.run("return performance.getEntriesByType('resource').length") == 0
