"""Render a picture as one self-contained HTML file.

Names come from a model, and a model may be hostile. The page contains them once, as JSON in a block
that is not executable, and the code inserts them as text. The page's content security policy allows
its one script and its one style by their hashes, so nothing else runs and nothing is loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from typing import Any

from tieops.rendering.svg import asset

__all__ = ["html_of"]

_SCRIPTS = ("dagre.min.js", "visible.js", "layout.js", "draw.js", "page.js")
_STYLES = ("page.css", "picture.css")
# What could end the block or be read as markup; in JSON each can be spelled as its number.
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
MAX_TITLE = 200


def html_of(data: dict[str, Any]) -> str:
    """Return pictures as one self-contained page.

    Args:
        data: Pictures, headings and changes as plain data.
    """
    license_text = asset("dagre.LICENSE").strip()
    dagre, *own = (asset(name).partition("//# sourceMappingURL")[0] for name in _SCRIPTS)
    script = "\n".join([f"/* dagre\n{license_text}\n*/", dagre, *own])
    style = "\n".join(asset(name) for name in _STYLES)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = data["pictures"][-1]["title"][:MAX_TITLE] or "tieops"
    parts = {
        "policy": policy,
        "title": escape(title),
        "style": style,
        "data": json.dumps(data, ensure_ascii=False).translate(_ESCAPES),
        "script": script,
    }
    # In pieces, so that nothing in a part is taken for a place to fill.
    head, *pieces = asset("page.html").split("{{")
    filled = (parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces))
    return head + "".join(filled)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
