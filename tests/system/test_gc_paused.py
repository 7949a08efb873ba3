"""The cycle collector comes back as it was."""

from __future__ import annotations

import gc
import threading

import pytest

from tieops.system.gc_paused import gc_paused


def test_it_is_on_again_after_the_last_pause_even_in_an_error() -> None:
    with pytest.raises(KeyError), gc_paused(), gc_paused():
        raise KeyError
    assert gc.isenabled()


def test_who_had_it_off_has_it_off() -> None:
    gc.disable()
    try:
        with gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_pauses_of_two_threads_overlap() -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with gc_paused():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    with gc_paused():
        thread.start()
        assert inside.wait(10)
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()
