"""Handle Ctrl-C while the command line loads: exit without a traceback.

Loading the package takes most of a second, and Python's handler would raise in the middle of
whatever import is running. So this module, the first of the package to be imported, restores the
system's default handler until ``main`` runs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

__all__ = ["raise_at_interrupt"]


def raise_at_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, so that what is being written is taken back."""
    _exchange(signal.SIG_DFL, signal.default_int_handler)


def _exchange(expected: object, handler: signal._HANDLER) -> None:  # pyright: ignore[reportPrivateUsage]
    # Ignored signals (nohup) and handlers of others stay as they are.
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is not expected:
            return
        signal.signal(signal.SIGINT, handler)


def _is_command() -> bool:
    # Of ``python -m`` the first argument is still "-m" while the package itself is imported.
    if sys.argv[:1] == ["-m"]:
        words = sys.orig_argv
        return "-m" in words and words[words.index("-m") + 1 :][:1] == ["tieops"]
    program = os.path.basename(sys.argv[0]) if sys.argv else ""
    return program in ("tieops", "tieops.exe", "tieops-script.py")


if _is_command():
    _exchange(signal.default_int_handler, signal.SIG_DFL)
