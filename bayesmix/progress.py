"""A bar on the terminal for what takes over two seconds; nothing where the output is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Progress"]

_PATIENCE = 2.0  # seconds


class Progress:
    """How far something is, in a `with` of its own; tqdm draws it, and is loaded when there is something to draw."""

    def __init__(self, title: str, unit: str, total: int | None = None) -> None:
        self._begun, self._done, self._bar = time.perf_counter(), 0, None
        self._title, self._unit, self._total = title, unit, total

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int = 1, title: str | None = None) -> None:
        """So many units more, of what has this title from here on."""
        self._done, self._title = self._done + done, title or self._title
        if self._bar is None and time.perf_counter() - self._begun < _PATIENCE:
            return
        bar = self._drawn()
        bar.set_description(self._title, refresh=False)
        bar.update(self._done - bar.n)

    def write(self, text: str) -> None:
        """A line above the bar."""
        if not self._drawn().disable:
            self._drawn().write(text, file=sys.stderr)

    def over[T](self, items: Iterable[T]) -> Iterator[T]:
        """The items, each a unit that is done when the next is asked for."""
        with self:
            for item in items:
                yield item
                self.update()

    def _drawn(self) -> tqdm:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self._title, unit=f" {self._unit}", total=self._total, disable=None, leave=False
            )
            self._bar.start_t = self._bar.last_print_t = time.time() - (time.perf_counter() - self._begun)
        return self._bar
