"""Render a picture as plain text: a tree of boxes, with the letters of the ties."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["letter", "text_of"]

MAX_NAME = 60
INDENT = "  "


def text_of(data: dict[str, Any]) -> str:
    """Return pictures as text.

    Args:
        data: Pictures, headings and changes as plain data.
    """
    lines: list[str] = list(data["changes"])
    for picture, heading in zip(data["pictures"], data["headings"], strict=True):
        title = ": ".join(part for part in (heading, picture["title"]) if part)
        lines += ["", title, ""] if lines and title else [title, ""] if title else []
        lines += _ties(picture)
        lines += ["", *_tree(picture), "", f"{picture['ledger']}"]
    return "\n".join(lines) + "\n"


def letter(mark: int) -> str:
    """Return the letter of a shared parameter: A to Z, then AA, AB and so on.

    Example:
        >>> letter(0), letter(27)
        ('A', 'AB')
    """
    text = ""
    while mark >= 0:
        text = chr(ord("A") + mark % 26) + text
        mark = mark // 26 - 1
    return text


def _ties(picture: dict[str, Any]) -> Iterator[str]:
    tied = sorted((p for p in picture["parameters"] if p["mark"] >= 0), key=lambda p: p["mark"])
    if not any(p["tied"] for p in tied):
        yield "no ties"
    for each in tied:
        names = " = ".join(_short(name) for name in each["names"])
        what = f"{each['what']}, {each['size']} ({each['evidence']})"
        yield f"[{letter(each['mark'])}] {names}: {what}"
    for duplicate in picture["duplicates"]:
        yield f"stored twice: {duplicate}"


def _tree(picture: dict[str, Any]) -> Iterator[str]:
    opened = set(picture["opened"])
    listed: set[int] = set()
    for box in picture["boxes"]:
        chain: list[int] = []
        at = box["group"]
        while at >= 0:
            chain.insert(0, at)
            at = picture["groups"][at]["group"]
        for depth, number in enumerate(chain):
            if number not in listed:
                listed.add(number)
                yield INDENT * depth + _group(picture, number)
            if number not in opened:
                break
        else:
            yield from _box(picture, box, INDENT * len(chain))


def _group(picture: dict[str, Any], number: int) -> str:
    group = picture["groups"][number]
    inside = {number}
    for i, each in enumerate(picture["groups"]):
        if each["group"] in inside:
            inside.add(i)
    marks: set[int] = set()
    for box in picture["boxes"]:
        if box["group"] in inside:
            marks |= {
                picture["parameters"][p]["mark"] for r in box["rows"] for p in r["parameters"]
            }
    letters = " ".join(f"[{letter(mark)}]" for mark in sorted(marks - {-1}))
    times = f" ×{group['times']}" if group["times"] else ""
    notes = f" ({'; '.join(group['notes'])})" if group["notes"] else ""
    return f"+ {_short(group['title'])}{times}{notes} {letters}".rstrip()


def _box(picture: dict[str, Any], box: dict[str, Any], indent: str) -> Iterator[str]:
    status = f" ({box['status']})" if box["status"] else ""
    form = "" if box["form"] == "layer" else f"{box['form']} "
    yield f"{indent}{form}{_short(box['name'])}: {box['kind']}{status}"
    for row in box["rows"]:
        mark = max((picture["parameters"][p]["mark"] for p in row["parameters"]), default=-1)
        sign = f"[{letter(mark)}]" if mark >= 0 else " - "
        view = f" ({row['view']})" if row["view"] else ""
        yield f"{indent}{INDENT}{sign} {row['role']} {row['what']}, {row['size']}{view}"


def _short(name: str) -> str:
    if not name:
        return "(no name)"
    return name if len(name) <= MAX_NAME else "…" + name[1 - MAX_NAME :]
