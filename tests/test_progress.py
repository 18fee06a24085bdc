"""The bar is drawn on a terminal, once something has taken two seconds, and nowhere else."""

import contextlib
import io
import subprocess
import sys

import pytest

from bayesmix import progress
from bayesmix.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    """What a use of a bar writes to a terminal, or to what is none, at these times of its calls, the last for good."""

    def shown(use, *seconds, terminal=True):
        times = iter([0.0, *seconds])
        monkeypatch.setattr(progress.time, "perf_counter", lambda: next(times, seconds[-1]))
        output = Terminal() if terminal else io.StringIO()
        with contextlib.redirect_stderr(output):
            use()
        return output.getvalue()

    return shown


def counted():
    with Progress("search", "cells", 4) as bar:
        bar.update(title="VVV, 2")
        bar.update(2)


def test_what_takes_long_is_shown_with_all_that_was_done_before(shown):
    text = shown(counted, 1, 10)
    assert "VVV, 2" in text
    assert "3/4 [00:10<" in text


def test_what_is_quick_shows_nothing(shown):
    assert shown(counted, 1.9) == ""


def test_nothing_is_written_where_there_is_no_terminal(shown):
    def use():
        counted()
        with Progress("nuts", "draws", 4) as bar:
            bar.write("a line")

    assert shown(use, 10, terminal=False) == ""


def test_a_line_is_written_above_the_bar_at_once(shown):
    def use():
        with Progress("nuts", "draws", 4) as bar:
            bar.write("in 1 of the last 4 draws transitions diverged")

    assert "in 1 of the last 4" in shown(use, 0)


def test_items_are_handed_on_and_counted(shown):
    taken = []
    text = shown(lambda: taken.extend(Progress("fitting", "k", 3).over("abc")), 0, 0, 10)
    assert taken == ["a", "b", "c"]
    assert "3/3" in text


def test_a_quick_fit_loads_no_bar_and_no_library_of_annotations():
    code = (
        "import sys, numpy as np, bayesmix as bm; "
        "bm.fit(bm.MixtureModel(1), np.arange(9.0)[:, None], n_starts=1); "
        "print(sorted({'tqdm', 'jaxtyping', 'scipy', 'pandas', 'numpyro'} & {m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
