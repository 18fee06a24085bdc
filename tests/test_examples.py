"""What the documentation says is true: every example and every Python block of a page runs, top to bottom."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from matplotlib import pyplot

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PICTURES = runpy.run_path(str(ROOT / "docs" / "figures.py"))
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    """In an empty folder, and without leaving figures open."""
    monkeypatch.chdir(tmp_path)
    yield
    pyplot.close("all")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), str(tmp_path)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_page(path):
    assert [name for name, _ in PICTURES["run"](path)] == PICTURES["drawn"](path)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    missing = [to for to in LINK.findall(path.read_text(encoding="utf-8")) if not (path.parent / to).exists()]
    assert not missing


def test_there_are_examples_and_pages():
    assert len(EXAMPLES) >= 3
    assert {"README.md", "index.md", "simulate.md", "em.md", "limit.md", "notation.md"} <= {
        p.name for p in PAGES
    }


def test_a_figure_is_drawn_once_and_every_one_is_shown():
    drawn = [name for path in PAGES for name in PICTURES["drawn"](path)]
    assert len(set(drawn)) == len(drawn)
    shown = {ROOT / "docs" / to for path in PAGES for to in LINK.findall(path.read_text(encoding="utf-8"))}
    assert not set(ROOT.glob("docs/figures/**/*.png")) - shown
