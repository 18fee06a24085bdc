"""Ctrl-C as a request: what runs finishes the compiled call that it is in, and gives back what it has."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Patience", "patient"]


class Patience:
    """What was asked for while something long ran."""

    asked = False  # Ctrl-C
    again = False  # and once more: stop at once, and give nothing back

    def check(self) -> None:
        """Between compiled calls, in any thread: the place where a request is answered.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        if self.asked:
            raise KeyboardInterrupt


@contextmanager
def patient() -> Iterator[Patience]:
    """Until the block ends the first Ctrl-C waits for `check`; a second one is as ever.

    A program that handles the signal by itself keeps its own way, and so do threads, which never see one.
    """
    patience = Patience()

    def heard(number: int, frame: Any) -> None:
        patience.again = patience.asked
        patience.asked = True
        if patience.again:
            raise KeyboardInterrupt

    here = threading.current_thread() is threading.main_thread()
    ours = here and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, heard)
    try:
        yield patience
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
