"""File names: paths that leave a folder on some system, and names that Windows reserves."""

from __future__ import annotations

import os
import re

__all__ = ["is_inside", "leads_out", "steps_back", "unfit_for_data", "unfit_here"]

# Windows' documentation, "Naming Files, Paths, and Namespaces": with any suffix, in any case.
_DEVICE = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])", re.IGNORECASE)
_NOT_ON_WINDOWS = re.compile(r'[\x00-\x1f<>:"|?*\\/]')
# `..`, and what Windows makes of names of dots and spaces once it has cut off those at the end.
_UPWARDS = re.compile(r"(?=.*\..*\.)[. ]+")


def is_inside(path: str, root: str) -> bool:
    """Return whether a real path is below a real folder, and not that folder itself."""
    path, root = os.path.normcase(path), os.path.normcase(root)
    try:
        return path != root and os.path.commonpath([path, root]) == root
    except ValueError:  # on Windows: another drive
        return False


def leads_out(location: str) -> bool:
    r"""Return whether a location that a file holds may lead out of the file's folder.

    That it does on one system is enough, wherever it is asked: ``C:x``, ``\\server\x``, and
    ``model.onnx:x``, which is a second stream of the model itself.
    """
    parts = location.split("/")
    if location.startswith("/") or "\\" in location or ":" in location or "\0" in location:
        return True
    depth = 0
    for part in parts:
        if _UPWARDS.fullmatch(part):
            depth -= 1
        elif part not in ("", "."):
            depth += 1
        if depth < 0:
            return True
    return False


def steps_back(location: str) -> bool:
    """Return whether a location has a step back in it, which leads elsewhere through a link."""
    return any(_UPWARDS.fullmatch(part) for part in location.split("/"))


def unfit_here(name: str) -> str | None:
    """Return why a file cannot have a name on this system, or None if it can.

    Example:
        >>> unfit_here("model.onnx") is None
        True
    """
    if os.name != "nt":
        return None
    if _DEVICE.fullmatch(name.partition(".")[0].rstrip(" ")):
        return "Windows gives this name to a device"
    if _NOT_ON_WINDOWS.search(name):
        return "it has a character that Windows does not allow in names"
    if name.endswith((".", " ")):
        return "Windows cuts off a dot or space at the end of a name"
    return None


def unfit_for_data(name: str) -> str | None:
    """Return why no model may refer to a data file of this name, on any system, or None.

    Example:
        >>> unfit_for_data("model.onnx.data") is None
        True
        >>> unfit_for_data("a:b.onnx.data")
        'elsewhere a colon or backslash in it leads to another place'
    """
    if leads_out(name):
        return "elsewhere a colon or backslash in it leads to another place"
    return unfit_here(name)
