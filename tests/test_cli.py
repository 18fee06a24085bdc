"""The command: what it chooses, prints and writes, and that a command that fails writes nothing."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas
import pytest
from typer.testing import CliRunner

import bayesmix as bm
from bayesmix import cli

FILES = ["bic.png", "clusters.csv", "clusters.png", "mixture.json", "objective.png"]
GOOD = (
    "a\n" + "\n".join(map(str, [0.11, 0.23, 0.31, 0.42, 0.5, 0.63, 9.1, 9.22, 9.35, 9.4, 9.58, 9.6])) + "\n"
)


@pytest.fixture
def bayesmix(tmp_path, monkeypatch):
    """Runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, text=None):
        if text is not None:
            (tmp_path / "data.csv").write_text(text)
        return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="module")
def two_groups(tmp_path_factory):
    """One good run: its folder, result and data."""
    folder = tmp_path_factory.mktemp("two_groups")
    data = folder / "data.csv"
    data.write_text(GOOD)
    options = ["--n-components", "1:2", "--covariance", "tied", "--out", str(folder / "new" / "out")]
    result = CliRunner().invoke(cli.app, ["fit", str(data), *options])
    return folder / "new" / "out", result, pandas.read_csv(data)


def test_a_good_run_says_what_it_chose(two_groups):
    out, result, _ = two_groups
    assert (result.exit_code, result.stderr) == (0, "")
    assert "12 rows, 1 feature;" in result.stdout
    assert "Chosen by BIC: k = 2" in result.stdout
    assert "mean a" in result.stdout
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_the_mixture_is_the_one_that_fit_gives(two_groups):
    out, _, x = two_groups
    mixture = bm.GaussianMixture.load(out / "mixture.json")
    fit = bm.fit(bm.MixtureModel(2, "tied"), x)
    assert mixture.feature_names == ("a",)
    for mine, theirs in (
        (mixture.weights, fit.mixture.weights),
        (mixture.covariances, fit.mixture.covariances),
    ):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(mixture.means, fit.mixture.means)


def test_clusters_are_the_responsibilities_to_the_last_digit(two_groups):
    out, _, x = two_groups
    mixture = bm.GaussianMixture.load(out / "mixture.json")
    clusters = pandas.read_csv(out / "clusters.csv", index_col="row")
    assert clusters.index.tolist() == list(range(12))
    assert list(clusters.columns) == ["cluster", "p0", "p1"]
    r = clusters[["p0", "p1"]].to_numpy()
    np.testing.assert_array_equal(r, mixture.responsibilities(x))
    assert r.sum(axis=1) == pytest.approx(np.ones(12), abs=1e-14)
    assert clusters["cluster"].tolist() == r.argmax(axis=1).tolist()


def test_the_table_has_every_fit(two_groups):
    _, result, x = two_groups
    for k in (1, 2):
        fit = bm.fit(bm.MixtureModel(k, "tied"), x)
        line = next(line for line in result.stdout.splitlines() if line.split()[:1] == [str(k)])
        assert line.split()[1:4] == [f"{fit.log_likelihood:.3f}", str(fit.n_parameters), f"{fit.bic:.3f}"]
        assert ("chosen" in line) == (k == 2)


def test_figures_are_pictures(two_groups):
    from matplotlib.image import imread

    for name in FILES:
        if name.endswith(".png"):
            assert imread(two_groups[0] / name).std() > 0.01


def test_a_spurious_fit_is_shown_with_its_reason_and_never_chosen(bayesmix, tmp_path):
    text = "a\n" + "\n".join(str(v) for v in np.r_[np.linspace(0, 1, 30), 5.0, 5.0001])
    result = bayesmix("fit", "data.csv", "--n-components", "1,2", "--out", "out", text=text)
    assert result.exit_code == 0
    assert bm.GaussianMixture.load(tmp_path / "out" / "mixture.json").n_components == 1
    lines = {
        line.split()[0]: line for line in result.stdout.splitlines() if line.split()[:1] in (["1"], ["2"])
    }
    assert float(lines["2"].split()[3]) < float(lines["1"].split()[3])
    assert "chosen" in lines["1"]
    assert "k = 2: spurious" in result.stdout
    assert "rows 30, 31" in result.stdout


def test_nothing_is_chosen_where_no_fit_is_clean(bayesmix, tmp_path):
    text = "a\n" + "1\n" * 9
    result = bayesmix("fit", "data.csv", "--n-components", "1", "--out", "out", text=text)
    assert result.exit_code == 1
    assert "none of these fits is clean" in result.stderr
    assert "degenerate" in result.stdout
    assert not (tmp_path / "out").exists()


ERRORS = {
    "text in a numeric column": ("a,b\n1,2\n2,foo\n3,4\n", [], ["data.csv", "'b'", "row 1", "'foo'"]),
    "text column": ("a,b\n1,x\n2,y\n3,z\n", [], ["'b'", "row 0", "'x'", "3 of 3 rows"]),
    "missing cell": ("a,b\n1,2\n2,\n3,4\n", [], ["'b'", "row 1", "no value"]),
    "short row": ("a,b\n1,2\n2\n3,4\n", [], ["'b'", "row 1", "no value"]),
    "infinite cell": ("a,b\n1,2\n2,3\ninf,4\n", [], ["'a'", "row 2", "'inf'"]),
    "longer rows than header": ("a,b\n1,2,3\n4,5,6\n", [], ["more cells than its header"]),
    "one longer row": ("a,b\n1,2\n1,2,3\n", [], ["cannot be read as CSV"]),
    "no header": ("1.5,2\n3,4\n5,6\n", [], ["no header line"]),
    "no rows": ("a,b\n", [], ["no rows"]),
    "empty file": ("", [], ["cannot be read as CSV"]),
    "no such file": (None, [], ["no file", "old_faithful"]),
    "more clusters than rows": ("a\n1\n2\n4\n", ["--n-components", "1:4"], ["only 3 rows"]),
    "no number": (GOOD, ["--n-components", "two"], ["--n-components", "'two'"]),
    "zero": (GOOD, ["--n-components", "0:2"], ["--n-components", "'0:2'"]),
    "empty range": (GOOD, ["--n-components", "3:2"], ["--n-components", "'3:2'"]),
    "three ends": (GOOD, ["--n-components", "1:2:3"], ["--n-components", "'1:2:3'"]),
    "no structure": (GOOD, ["--covariance", "round"], ["covariance must be one of", "'round'"]),
}


@pytest.mark.parametrize(("text", "options", "words"), ERRORS.values(), ids=ERRORS.keys())
def test_bad_input_is_one_sentence_and_writes_nothing(bayesmix, tmp_path, text, options, words):
    before = ["data.csv"] if text is not None else []
    result = bayesmix("fit", "data.csv", *options, "--out", "out", text=text)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("bayesmix: ")
    assert result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_that_cannot_be_made_is_said_before_any_work(bayesmix, tmp_path):
    result = bayesmix("fit", "data.csv", "--out", "data.csv/out", text=GOOD)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is a file" in result.stderr


def test_a_failure_while_writing_leaves_nothing(bayesmix, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(cli, "_draw", fail)
    result = bayesmix("fit", "data.csv", "--n-components", "1", "--out", "out", text=GOOD)
    assert result.exit_code == 2
    assert "disk full" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("start", [0, 1])
def test_a_nameless_column_that_counts_rows_is_no_feature(bayesmix, start):
    lines = GOOD.split()
    text = "\n".join([',"a"', *(f"{i + start},{cell}" for i, cell in enumerate(lines[1:]))])
    result = bayesmix("fit", "data.csv", "--n-components", "1", text=text)
    assert result.exit_code == 0
    assert "12 rows, 1 feature;" in result.stdout
    assert "left out" in result.stderr
    assert "Nothing was written" in result.stdout


@pytest.mark.parametrize(
    ("text", "counts"), [("3", [3]), ("1:3", [1, 2, 3]), ("5,1,2,2", [1, 2, 5]), ("2:2", [2])]
)
def test_numbers_of_clusters(text, counts):
    assert cli._counts(text) == counts


def test_help_shows_an_example(bayesmix):
    for arguments in (["--help"], ["fit", "--help"]):
        result = bayesmix(*arguments)
        assert result.exit_code == 0
        assert "Example: bayesmix fit" in result.stdout


def test_the_command_reads_standard_input_in_a_fresh_process(tmp_path):
    code = "from bayesmix.cli import main; main()"
    command = [sys.executable, "-c", code, "fit", "-", "--n-components", "1", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, input=GOOD, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
