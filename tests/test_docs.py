"""The pages leave nothing out and name nothing that is not there."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest

import bayesmix as bm
from bayesmix import plots

DOCS = Path(__file__).parent.parent / "docs"
REFERENCE = "\n".join(path.read_text(encoding="utf-8") for path in DOCS.glob("reference/*.md"))
CLASSES = [name for name in bm.__all__ if inspect.isclass(getattr(bm, name))]
PUBLIC = [f"bayesmix.{name}" for name in bm.__all__ if name != "datasets"]
PUBLIC += [f"bayesmix.plots.{name}" for name in plots.__all__]
PUBLIC += [f"bayesmix.datasets.{name}" for name in ("load", "labels")]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_in_the_reference(name):
    assert len(re.findall(rf"^::: {re.escape(name)}$", REFERENCE, re.MULTILINE)) == 1


def test_every_module_is_on_its_page_with_its_own_words(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    modules = importlib.import_module("modules")
    package = Path(bm.__file__).parent
    every = [path.stem for path in package.glob("*.py") if not path.stem.startswith("__")]
    every += [path.parent.name for path in package.glob("*/__init__.py")]
    assert sorted(" ".join(modules.GROUPS.values()).split()) == sorted(every)
    assert (DOCS / "modules.md").read_text(encoding="utf-8") == modules.page(), "run python docs/modules.py"


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_member_says_what_it_is(name):
    kind = getattr(bm, name)
    inside = inspect.getdoc(kind) or ""
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    for member, value in vars(kind).items():
        if not member.startswith("_") and member not in fields:
            assert inspect.getdoc(value) or re.search(rf"^ *{member}: ", inside, re.MULTILINE), member
    for field in fields:
        assert field.startswith("_") or re.search(rf"\b{field}\b", inside), field


@pytest.mark.parametrize("name", [name for name in plots.__all__ if name.startswith("plot_")])
def test_every_figure_is_in_the_gallery(name):
    assert f"{name}(" in (DOCS / "gallery.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(DOCS.glob("**/*.md")), ids=lambda path: path.name)
def test_what_a_page_names_is_there(path):
    text = path.read_text(encoding="utf-8")
    assert not [name for name in set(re.findall(r"\bbm\.(\w+)", text)) if not hasattr(bm, name)]
    assert not [name for name in set(re.findall(r"(?<!az\.)\bplot_\w+", text)) if not hasattr(plots, name)]


def test_every_image_of_the_gallery_is_drawn_by_the_block_above_it():
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^```\n\n!\[", text, re.MULTILINE)) == len(re.findall(r"^!\[", text, re.MULTILINE))
