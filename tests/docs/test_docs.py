"""README and docs: every Python block runs, and prints what stands below it."""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
import types
from pathlib import Path

import pytest

from tests.support.markdown import BLOCK, PAGES, ROOT


def steps(page: Path) -> list[tuple[int, str, str | None]]:
    """Return each Python block of a page: its line, its code, and the output that is promised."""
    text = page.read_text("utf-8")
    blocks = list(BLOCK.finditer(text))
    found: list[tuple[int, str, str | None]] = []
    for block, following in itertools.zip_longest(blocks, blocks[1:]):
        if block[1] != "python":
            continue
        output = None
        # Directly below: nothing but blank lines between the two blocks.
        if following is not None and following[1] == "text":
            between = text[block.end() : following.start()]
            output = following[2] if not between.strip() else None
        found.append((text[: block.start()].count("\n") + 2, block[2], output))
    return found


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def test_there_is_something_to_run():
    assert any(output for _, _, output in steps(ROOT / "README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run_in_order_and_print_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"page_{page.stem}"
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)  # for classes that are looked up by name
    for line, code, promised in steps(page):
        out = io.StringIO()
        compiled = compile("\n" * (line - 1) + code, str(page), "exec")
        with contextlib.redirect_stdout(out):
            exec(compiled, module.__dict__)
        if promised is not None:
            assert lines(out.getvalue()) == lines(promised), f"{page.name}, line {line}"
