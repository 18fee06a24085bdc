"""The report: text is escaped, nothing is loaded, and a real browser shows it at the width of a desk and of a phone."""

from __future__ import annotations

import base64
import re
import shlex
from datetime import UTC, datetime
from types import SimpleNamespace

import pandas
import pytest
from browser import WIDTHS, assert_sound, browser
from typer.testing import CliRunner

import bayesmix as bm
from bayesmix import cli, report

NASTY = "<script>alert(1)</script> & $x_{$"
WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of data whose columns and classes are named as badly as they can be."""
    folder = tmp_path_factory.mktemp("report")
    x = bm.datasets.load("old_faithful").rename(columns={"waiting": NASTY})
    x["<kind>"] = ["<b>long</b>" if duration > 3 else "[red]short" for duration in x["eruptions"]]
    data, path = folder / "geyser <i>.csv", folder / "new" / "report.html"
    x.to_csv(data, index=False)
    words = ["fit", str(data), "--n-components", "1:2", "--labels", "<kind>", "--report", str(path)]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    return SimpleNamespace(
        path=path, html=path.read_text(encoding="utf-8"), stdout=result.stdout, words=words
    )


def test_every_piece_escapes_its_text():
    frame = pandas.DataFrame({NASTY: [NASTY]}).rename_axis(NASTY)
    pieces = [
        report.paragraph(NASTY, "warn"),
        report.code(NASTY),
        report.details(NASTY),
        report.facts({NASTY: NASTY}),
        report.figure(b"", '" onerror="alert(1)'),
        report.table(frame, NASTY),
        report.section(NASTY),
    ]
    html = report.page(NASTY, pieces, [report.section(NASTY, *pieces)], made=WHEN)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x_{$" in html
    assert ' onerror="' not in html
    assert html.count("$x_{$") > 10  # a dollar is no place of the template


def test_a_table_sets_numbers_at_the_right_and_marks_rows():
    frame = pandas.DataFrame({"word": ["a", "b"], "number": ["-1.5", "–"]})
    html = report.table(frame, "what it is", kinds=["chosen", ""])
    assert html.count('class="n"') == 3
    assert '<tr class="chosen"><td>a</td><td class="n">-1.5</td></tr>' in html


def test_a_picture_is_inside_the_page():
    html = report.figure(b"picture", "caption", kind="png")
    assert base64.b64encode(b"picture").decode() in html
    assert 'alt="caption"' in html


def test_the_page_loads_and_runs_nothing(made):
    assert "<script" not in made.html
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', made.html)) == {"data:"}
    assert not re.search(r"https?://|@import|url\(", made.html)
    assert made.html.count("<img ") == 4
    for picture in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', made.html):
        assert b"<script" not in base64.b64decode(picture)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_shows_it(made, chromium, width):
    text = assert_sound(chromium, made.path, width)
    x = bm.datasets.load("old_faithful")
    fit = bm.fit(bm.MixtureModel(2), x)
    for expected in (
        "Gaussian mixture of geyser <i>.csv",
        "Chosen by BIC: k = 2",
        f"{fit.log_likelihood:.3f}",
        f"{fit.bic:.3f}",
        "adjusted Rand index 1.000",
        "<b>long</b>",
        "[red]short",
        f"mean {NASTY}",
        "272 rows, 2 features",
        "converged, chosen",
        f"{bm.standard_errors(fit, x).weights[0]:.4g}",
        f"{bm.check_fit(fit, x).status}",
        f"by bayesmix {bm.__version__}",
        shlex.join(["bayesmix", *made.words]),
    ):
        assert expected in text


def test_without_out_only_the_report_is_written(made):
    assert [path.name for path in made.path.parent.iterdir()] == ["report.html"]
    assert f"Wrote {made.path}" in made.stdout
    assert "adjusted Rand index 1.000" in made.stdout


@pytest.mark.parametrize("name", ["report.txt", "report", "data.csv/report.html"])
def test_a_report_that_cannot_be_made_is_said_before_any_work(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("a\n1\n2\n")
    result = CliRunner().invoke(cli.app, ["fit", "data.csv", "--report", name])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("bayesmix: ")
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]
