"""``tieops.render``: the four formats, and what it refuses."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from fontTools.ttLib import TTFont
from onnx import numpy_helper
from PIL import Image
from typer.testing import CliRunner

import tieops
from fixtures.gallery import seed_network
from tests.support.fonts import LETTERS
from tieops.cli import app
from tieops.errors import (
    ExportError,
    MissingDependencyError,
    PreconditionError,
    UnsupportedModelError,
)
from tieops.rendering.picture_text import letter
from tieops.rendering.svg import asset, asset_path

SVG = "{http://www.w3.org/2000/svg}"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tied() -> tieops.TiedModel:
    return tieops.remove_disconnected_outputs(seed_network())


def texts(path: Path) -> list[str]:
    return ["".join(each.itertext()) for each in ET.parse(path).iter(f"{SVG}text")]


def test_svg_shows_the_tie_with_its_views_and_bytes(tied, tmp_path):
    path = tieops.render(tied, tmp_path / "m.svg", title="the seed")
    shown = texts(path)
    for wanted in (
        "the seed",
        "emb.weight = fc.weight",
        "transpose",
        "as stored",
        "emb",
        "fc",
        "lstm",
    ):
        assert wanted in shown
    assert "read by emb.weight, fc.weight (transpose)" in shown
    fills = {rect.get("fill") for rect in ET.parse(path).iter(f"{SVG}rect")} - {None}
    assert len(fills) == 1, "one colour for one parameter"
    widths = [
        p.get("stroke-width") for p in ET.parse(path).iter(f"{SVG}path") if p.get("stroke-width")
    ]
    assert len(widths) == 2


def test_a_line_is_thicker_for_more_bytes(tmp_path):
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
        g (float[2, 8] x) => (float[2, 8] y)
        { a = MatMul(x, big) b = MatMul(a, big) c = Add(b, small) d = Relu(c) e = Add(d, small)
          f = MatMul(e, big) y = Tanh(f) }""")
    rng = np.random.default_rng(0)
    for name, shape in (("big", (8, 8)), ("small", (8,))):
        tensor = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(tensor, name))
    path = tieops.render(tieops.from_onnx(proto), tmp_path / "m.svg")
    thick: dict[str, set[float]] = {}
    for line in ET.parse(path).iter(f"{SVG}path"):
        if line.get("stroke-width"):
            thick.setdefault(str(line.get("stroke")), set()).add(float(line.get("stroke-width", 0)))
    (big,), (small,) = thick["#0072b2"], thick["#e69f00"]
    assert big > small


def test_png_is_the_svg_in_pixels_with_letters_on_it(tied, tmp_path):
    svg = tieops.render(tied, tmp_path / "m.svg")
    png = tieops.render(tied, tmp_path / "m.png")
    image = Image.open(png).convert("RGB")
    root = ET.parse(svg).getroot()
    assert image.size[0] == pytest.approx(2 * float(root.get("width", 0)), abs=2)
    pixels = np.asarray(image)
    assert (pixels < 80).all(axis=2).mean() > 0.002, "no dark letters: fonts are missing"
    assert (pixels == 255).all(axis=2).mean() > 0.5


def test_html_is_one_file_without_addresses(tied, tmp_path):
    text = tieops.render(tied, tmp_path / "m.html").read_text("utf-8")
    addresses = set(re.findall(r"https?://[\w./-]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "a name of XML, not an address"
    assert "Copyright (c) 2012-2014 Chris Pettitt" in text
    assert "Content-Security-Policy" in text
    assert re.search(r"\beval\(|new Function|innerHTML|document\.write", text) is None


def test_text_is_a_tree_with_the_marks(tied, tmp_path):
    text = tieops.render(tied, tmp_path / "m.txt").read_text("utf-8")
    assert text.count("[A]") == 3  # the tie, and its two readers
    assert "  [A] weight f32[300,1000], 1.20 MB (transpose)" in text


def test_two_models_side_by_side(tied, tmp_path):
    free = tieops.untie(tied)
    for suffix in (".svg", ".html", ".txt", ".png"):
        path = tieops.render(free, tmp_path / f"m{suffix}", before=tied)
        assert path.stat().st_size > 500
    shown = texts(tmp_path / "m.svg")
    assert {"What changed", "before", "after"} <= set(shown)
    assert "fc.weight no longer reads emb.weight and has a copy: fc.weight f32[300,1000]" in shown


def test_the_same_model_gives_the_same_file(tied, tmp_path):
    for suffix in (".svg", ".html", ".txt"):
        first = tieops.render(tied, tmp_path / f"a{suffix}").read_bytes()
        assert first == tieops.render(tied, tmp_path / f"b{suffix}").read_bytes()


def test_names_cannot_break_out_of_xml(tmp_path):
    graph = onnx_ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 20]>
        g (int64[n] x) => (float[n, 2] y) <float[2, 2] w = {1,2,3,4}>
        { h = Gather(w, x) y = MatMul(h, w) }""")
    for node, name in zip(
        graph.graph, ('</text><script x="1">', "\x00\ufffe\u202e" * 3000), strict=True
    ):
        node.name = name
    path = tieops.render(tieops.from_onnx(graph), tmp_path / "m.svg", title="]]><!--&amp;\x07")
    assert ET.parse(path).getroot().findall(f".//{SVG}script") == []
    assert path.stat().st_size < 50_000
    Image.open(io.BytesIO(tieops.render(tieops.from_onnx(graph), tmp_path / "m.png").read_bytes()))


def test_what_it_refuses(tied, tmp_path):
    with pytest.raises(PreconditionError, match=r"unsupported picture format: m\.gif"):
        tieops.render(tied, tmp_path / "m.gif")
    with pytest.raises(UnsupportedModelError, match="expected a TiedModel, got an int"):
        tieops.render(3, tmp_path / "m.html")
    with pytest.raises(UnsupportedModelError, match="got a dict"):
        tieops.render(tied, tmp_path / "m.html", before={})
    with pytest.raises(ExportError, match="cannot write"):
        tieops.render(tied, tmp_path / "nowhere" / "m.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("module", "suffix"), [("dukpy", ".svg"), ("resvg_py", ".png")])
def test_without_the_extra_it_says_how_to_install_it(tied, tmp_path, monkeypatch, module, suffix):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=re.escape('pip install "tieops[render]"')):
        tieops.render(tied, tmp_path / f"m{suffix}")
    for other in (".html", ".txt"):
        assert tieops.render(tied, tmp_path / f"m{other}").is_file()


def test_the_command(tied, tmp_path):
    tieops.to_onnx(tied, tmp_path / "tied.onnx")
    tieops.to_onnx(tieops.untie(tied), tmp_path / "free.onnx")
    run = CliRunner().invoke
    model, out = str(tmp_path / "tied.onnx"), str(tmp_path / "m.html")
    done = run(app, ["render", model, out])
    assert (done.exit_code, done.stdout.replace("\n", "")) == (0, out)
    assert "tied.onnx" in Path(out).read_text("utf-8")
    done = run(app, ["render", str(tmp_path / "free.onnx"), out, "--before", model, "--json"])
    assert done.exit_code == 0
    assert "What" not in done.stdout
    assert "no longer read" in Path(out).read_text("utf-8")


def test_a_wrong_suffix_on_the_command_line_is_misuse(tmp_path):
    command = [sys.executable, "-m", "tieops", "render", "none.onnx", str(tmp_path / "m.bmp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_letters_go_on_after_z():
    assert [letter(mark) for mark in (0, 25, 26, 701, 702)] == ["A", "Z", "AA", "ZZ", "AAA"]


def test_what_ships_has_its_licence():
    assert "Chris Pettitt" in asset("dagre.LICENSE")
    assert "SIL Open Font License" in asset("Roboto.LICENSE")


@pytest.mark.parametrize("weight", ["Regular", "Medium"])
def test_the_font_has_the_letters_of_pictures_and_little_more(weight):
    path = Path(asset_path(f"Roboto-{weight}.ttf"))
    assert path.stat().st_size < 25_000
    letters = TTFont(path).getBestCmap()
    assert {*range(0x20, 0x7F), *range(0xA1, 0x100)} <= {*letters, 0xAD} <= {*LETTERS, 0xAD}
    drawn = "".join(asset(name) for name in ("draw.js", "layout.js", "visible.js", "poster.js"))
    signs = {sign for sign in drawn if ord(sign) > 126}
    assert {sign for sign in signs if ord(sign) not in letters} <= {"→"}  # which Roboto lacks


def test_the_gallery_is_small_and_on_its_page():
    pictures = sorted((ROOT / "docs" / "gallery").glob("*.svg"))
    page = (ROOT / "docs" / "gallery.md").read_text("utf-8")
    assert len(pictures) >= 9
    for picture in pictures:
        assert picture.stat().st_size < 100_000
        assert f"gallery/{picture.name}" in page
        ET.parse(picture)
