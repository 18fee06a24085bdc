"""The command: what it chooses, prints and writes, and that a command that fails writes nothing.

The commands about posteriors are in test_cli_posterior.py, the report in test_report.py.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from typer.testing import CliRunner

import bayesmix as bm
from bayesmix import cli
from bayesmix.agreement import adjusted_rand_index, cross_counts
from bayesmix.cli.plot import KINDS
from bayesmix.cli.shared import counts_of

FILES = ["bic.png", "clusters.csv", "clusters.png", "mixture.json", "objective.png"]
GOOD = (
    "a\n" + "\n".join(map(str, [0.11, 0.23, 0.31, 0.42, 0.5, 0.63, 9.1, 9.22, 9.35, 9.4, 9.58, 9.6])) + "\n"
)


@pytest.fixture
def bayesmix(tmp_path, monkeypatch):
    """Runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, text=None, stdin=None):
        if text is not None:
            (tmp_path / "data.csv").write_text(text)
        return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], input=stdin)

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
    "decimal commas": ("a;b\n0,12;1,5\n", [], ["'a'", "'0,12'", "row 0", "decimal point"]),
    "commas and points": ('a,b\n1,"-1.234,5"\n', [], ["'b'", "'-1.234,5'", "row 0", "decimal point"]),
    "decimal commas in one column": ("a\n0,12\n0,5\n", [], ["more cells than its header", "decimal point"]),
    "two columns of one name": ("a, b,a \n1,2,3\n", [], ["data.csv has several columns called 'a'"]),
    "empty file": ("", [], ["cannot be read as CSV"]),
    "no such file": (None, [], ["no file", "old_faithful"]),
    "more clusters than rows": ("a\n1\n2\n4\n", ["--n-components", "1:4"], ["only 3 rows"]),
    "no number": (GOOD, ["--n-components", "two"], ["--n-components", "'two'"]),
    "zero": (GOOD, ["--n-components", "0:2"], ["--n-components", "'0:2'"]),
    "empty range": (GOOD, ["--n-components", "3:2"], ["--n-components", "'3:2'"]),
    "no such feature": (GOOD, ["--features", "a,b"], ["'b'", "columns are a"]),
    "no such label": (GOOD, ["--labels", "kind"], ["'kind'", "columns are a"]),
    "only a label": (GOOD, ["--labels", "a"], ["no column left"]),
    "missing label": ("a,kind\n1,x\n2,\n3,y\n", ["--labels", "kind"], ["'kind'", "row 1", "no value"]),
    "a feature twice": (GOOD, ["--features", "a,a"], ["'a'", "twice", "--features"]),
    "a feature and a label": ("a,b\n1,2\n2,3\n", ["--features", "a,b", "--labels", "b"], ["'b'", "twice"]),
    "blank line in a lone column": ("a\n1\n  \n2\n\n3\n\n", [], ["'a'", "no value in row 1", "blank line"]),
    "missing cell at the end": ('a\n1\n2\n3\n""\n', [], ["'a'", "no value in row 3"]),
    "blank label": ("a,kind\n1,x\n2, \n3,y\n", ["--labels", "kind"], ["'kind'", "row 1", "no value"]),
    "very many": (GOOD, ["--n-components", "1:100000000000"], ["--n-components", "10000 numbers at most"]),
    "no criterion": (GOOD, ["--criterion", "nec"], ["--criterion", "'nec'"]),
    "no prior": (GOOD, ["--prior", "strong"], ["'strong'"]),
    "no format": (GOOD, ["--format", "xlsx"], ["--format", "'xlsx'"]),
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
    replace = Path.replace

    def fail(path, target):
        if target.name == "clusters.png":
            raise OSError("disk full")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    options = ["--n-components", "1", "--out", "new/out", "--report", "report.html"]
    result = bayesmix("fit", "data.csv", *options, text=GOOD)
    assert result.exit_code == 2
    assert "disk full" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


def in_place(folder):
    """All that is in a folder: the bytes of each file, and None of each folder."""
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


def test_a_failure_while_overwriting_puts_everything_back(bayesmix, tmp_path, monkeypatch):
    options = ["-k", "1", "--out", "out"]
    assert bayesmix("fit", "data.csv", *options, text=GOOD).exit_code == 0
    (tmp_path / "out" / "objective.png").unlink()
    (tmp_path / "out" / "mixture.json").write_text("old")
    before = in_place(tmp_path / "out")
    replace = Path.replace

    def fail(path, target):
        if path.suffix == ".part" and target.name == "objective.png":  # the last one
            raise OSError("disk full")
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        assert bayesmix("fit", "data.csv", *options).exit_code == 2
    assert in_place(tmp_path / "out") == before
    (tmp_path / "out" / "clusters.csv").unlink()
    (tmp_path / "out" / "clusters.csv").mkdir()
    before = in_place(tmp_path / "out")
    result = bayesmix("fit", "data.csv", *options)
    assert result.exit_code == 2
    assert "cannot write" in result.stderr
    assert in_place(tmp_path / "out") == before
    (tmp_path / "out" / "clusters.csv").rmdir()
    assert bayesmix("fit", "data.csv", *options).exit_code == 0
    assert sorted(in_place(tmp_path / "out")) == FILES
    assert bm.GaussianMixture.load(tmp_path / "out" / "mixture.json").n_components == 1


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a;b\n1;2\n2;5\n4;3\n", ["a", "b"]),
        ("a\tb\n1\t2\n2\t5\n4\t3\n", ["a", "b"]),
        ('"a, left";"b"\n1;2\n2;5\n4;3\n', ["a, left", "b"]),
        ('"a;left",b\n1,2\n2,5\n4,3\n', ["a;left", "b"]),
        ('\ufeffa , "b" \n1, 2\n2, 5\n4, 3\n', ["a", "b"]),
        ('a," b"\n1,2\n2,5\n4,3\n', ["a", " b"]),
    ],
)
@pytest.mark.parametrize("piped", [False, True])
def test_the_header_says_what_separates_cells(bayesmix, tmp_path, text, names, piped):
    (tmp_path / "data.csv").write_text(text, encoding="utf-8")
    words = ["-k", "1", "--covariance", "spherical", "--json"]
    result = bayesmix("fit", "-" if piped else "data.csv", *words, stdin=text.encode() if piped else None)
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["data"]["features"] == names
    assert found["mixture"]["means"][0] == pytest.approx([7 / 3, 10 / 3])


def test_blanks_in_the_header_are_no_part_of_names(bayesmix):
    text = "a, b ,kind\n1,2,x\n2,5,y\n4,3,y\n"
    words = ["-k", "1", "--covariance", "spherical", "--features", "a,b", "--labels", "kind", "--json"]
    result = bayesmix("fit", "data.csv", *words, text=text)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["data"]["features"] == ["a", "b"]


@pytest.mark.parametrize("text", ["größe,b\n1,2\n", "a,b\n1,größe\n"])
def test_a_file_that_is_not_utf_8_is_one_sentence(bayesmix, tmp_path, text):
    (tmp_path / "data.csv").write_bytes(text.encode("latin-1"))
    result = bayesmix("fit", "data.csv")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "bayesmix: data.csv is not UTF-8; save it as UTF-8\n"


def test_blank_lines_after_a_lone_column_are_no_rows(bayesmix):
    result = bayesmix("fit", "data.csv", "-k", "1", "--json", text="a\n1\n2\n6\n\n \n\n")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["data"] == {"name": "data.csv", "n_rows": 3, "features": ["a"]}
    assert found["mixture"]["means"] == [[3.0]]


def test_a_class_is_a_word_whatever_it_says(bayesmix):
    kinds = ["NA", "None", "nan", "1", "01", "x "] * 2
    text = "kind,a\n" + "\n".join(f"{kind},{cell}" for kind, cell in zip(kinds, GOOD.split()[1:]))
    result = bayesmix("fit", "data.csv", "-k", "1", "--labels", "kind", "--json", text=text)
    assert (result.exit_code, result.stderr) == (0, "")
    table = json.loads(result.stdout)["labels"]["cross_table"]
    assert table == {kind.strip(): [2] for kind in kinds}


def test_the_figure_of_the_criterion_has_its_name(bayesmix, tmp_path):
    words = ["-k", "1", "--criterion", "icl", "--out", "out"]
    assert bayesmix("fit", "data.csv", *words, text=GOOD).exit_code == 0
    assert {"icl.png"} == {path.name for path in (tmp_path / "out").iterdir()} - set(FILES)
    assert "bic.png (named after the criterion)" in " ".join(bayesmix("fit", "--help").stdout.split())


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
    assert counts_of(text) == counts


def test_commands_on_the_page_have_their_options():
    from typer.main import get_command

    page = Path(__file__).parent.parent / "docs" / "command_line.md"
    commands = get_command(cli.app).commands
    used = set()
    for line in re.findall(r"bayesmix (?:fit|search|sample|simulate|compare|plot) .*", page.read_text()):
        for words in (part.split() for part in line.partition("`")[0].split("|")):
            name, options = words[1], [word for word in words if word.startswith("-") and word != "-"]
            known = {option for parameter in commands[name].params for option in parameter.opts}
            assert set(options) <= known, line
            used.add(name)
    assert used == set(commands)


@pytest.mark.parametrize("command", ["fit", "search", "sample", "simulate", "compare", "plot"])
def test_help_shows_an_example(bayesmix, command):
    assert "Example: bayesmix fit" in bayesmix("--help").stdout
    result = bayesmix(command, "--help")
    assert result.exit_code == 0
    assert f"Example: bayesmix {command}" in result.stdout
    assert "Exit codes: 0" in result.stdout
    assert command in bayesmix("--help").stdout


def test_the_version_is_said_without_loading_anything(tmp_path):
    code = "import sys; sys.argv = ['bayesmix', '--version']; from bayesmix.cli import main\n"
    code += "try: main()\nfinally: assert not {'jax', 'pandas', 'matplotlib', 'scipy'} & {*sys.modules}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"bayesmix {bm.__version__}\n", "")


def test_the_command_reads_standard_input_in_a_fresh_process(tmp_path):
    code = "from bayesmix.cli import main; main()"
    command = [sys.executable, "-c", code, "fit", "-", "--n-components", "1", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, input=GOOD, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


def test_json_is_one_object_and_nothing_else(bayesmix, tmp_path):
    lines = GOOD.split()
    text = "\n".join(["a,kind", *(f"{cell},{'lo' if i < 7 else 'hi'}" for i, cell in enumerate(lines[1:]))])
    options = ["-k", "1:2", "--covariance", "tied", "--labels", "kind", "--out", "out", "--json"]
    result = bayesmix("fit", "data.csv", *options, text=text)
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    fit = bm.fit(bm.MixtureModel(2, "tied"), pandas.read_csv("data.csv")[["a"]])
    assert found["data"] == {"name": "data.csv", "n_rows": 12, "features": ["a"]}
    assert [row["n_components"] for row in found["fits"]] == [1, 2]
    assert found["chosen"] == found["fits"][1]
    assert found["chosen"]["bic"] == fit.bic
    assert found["mixture"] == json.loads((tmp_path / "out" / "mixture.json").read_text())
    assert sorted(Path(name).name for name in found["files"]) == FILES
    truth = ["lo"] * 7 + ["hi"] * 5
    assert found["labels"]["adjusted_rand_index"] == adjusted_rand_index(truth, fit.labels) < 1
    table = found["labels"]["cross_table"]
    assert {name: sum(counts) for name, counts in table.items()} == {"hi": 5, "lo": 7}


def test_json_without_a_clean_fit_says_so(bayesmix, tmp_path):
    result = bayesmix("fit", "data.csv", "-k", "1", "--out", "out", "--json", text="a\n" + "1\n" * 9)
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["chosen"], found["mixture"], found["files"]) == (None, None, [])
    assert "degenerate" in found["fits"][0]["reason"]
    assert "none of these fits is clean" in result.stderr
    assert not (tmp_path / "out").exists()


def test_known_classes_of_a_bundled_data_set_are_no_feature(bayesmix):
    result = bayesmix("fit", "iris", "-k", "1", "--labels", "label")
    assert "150 rows, 4 features" in result.stdout
    assert "Agreement with label: adjusted Rand index 0.000" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line for line in lines if line[:1] == ["setosa"]] == [["setosa", "50"]]


def test_features_are_chosen_by_name(bayesmix):
    text = "id,a,b\n" + "\n".join(f"row{i},{i},{-i}" for i in range(12))
    result = bayesmix("fit", "data.csv", "-k", "1", "--features", "b", "--json", text=text)
    found = json.loads(result.stdout)
    assert found["data"]["features"] == ["b"]
    assert found["mixture"]["means"] == [[-5.5]]


def test_parquet_in_and_out(bayesmix, tmp_path):
    frame = pandas.read_csv(io.StringIO(GOOD))
    frame.to_parquet(tmp_path / "data.parquet")
    bayesmix("fit", "data.csv", "-k", "1", "--out", "csv", text=GOOD)
    result = bayesmix("fit", "data.parquet", "-k", "1", "--out", "out", "--format", "parquet")
    assert (result.exit_code, result.stderr) == (0, "")
    clusters = pandas.read_parquet(tmp_path / "out" / "clusters.parquet")
    pandas.testing.assert_frame_equal(clusters, pandas.read_csv(tmp_path / "csv" / "clusters.csv"))
    content = (tmp_path / "data.parquet").read_bytes()
    piped = bayesmix("fit", "-", "-k", "1", stdin=content)
    assert "standard input: 12 rows, 1 feature" in piped.stdout


DATES = pandas.to_datetime(["2020-01-01", "2020-01-02", None])
NO_NUMBERS = {
    "dates": DATES,
    "dates of a zone": DATES.tz_localize("UTC"),
    "spans": DATES - DATES[0],
    "periods": DATES.to_period("D"),
    "lists": [[1.0, 2.0], [3.0], None],
    "days": [date.date() for date in DATES],
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_a_column_of_parquet_that_is_no_number_is_said(bayesmix, tmp_path, kind):
    frame = pandas.DataFrame({"a": [1.0, 2.0, 4.0], "other": NO_NUMBERS[kind]})
    frame.to_parquet(tmp_path / "data.parquet")
    result = bayesmix("fit", "data.parquet", "-k", "1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(
        r"bayesmix: data.parquet: column 'other' holds '.+', not a finite number, in row 0 .*\n",
        result.stderr,
    )
    assert bayesmix("fit", "data.parquet", "-k", "1", "--features", "a").exit_code == 0


def test_a_broken_parquet_file_is_said(bayesmix, tmp_path):
    (tmp_path / "data.parquet").write_bytes(b"PAR1, but no more")
    result = bayesmix("fit", "data.parquet")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "data.parquet cannot be read as Parquet" in result.stderr


def test_parquet_without_pyarrow_names_the_extra(bayesmix, monkeypatch, tmp_path):
    import importlib.util

    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for words in (["fit", "data.parquet"], ["fit", "iris", "--format", "parquet"]):
        result = bayesmix(*words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "bayesmix[parquet]" in result.stderr


def test_an_interrupted_command_leaves_nothing(bayesmix, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    result = bayesmix("fit", "data.csv", "-k", "1", "--out", "out", text=GOOD)
    assert result.exit_code == 130
    assert result.stderr == "bayesmix: interrupted\n"
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


def test_search_ranks_all_cells_and_writes_the_best(bayesmix, tmp_path):
    options = ["-k", "1:2", "--covariance", "tied,full", "--out", "out", "--top", "3"]
    result = bayesmix("search", "data.csv", *options, text=GOOD)
    assert (result.exit_code, result.stderr) == (0, "")
    found = bm.search(pandas.read_csv("data.csv"), n_components=[1, 2], covariance=["E", "V"])
    table = pandas.read_csv(tmp_path / "out" / "search.csv", keep_default_na=False)
    assert list(table.columns) == list(found.table.columns)
    assert table["bic"].to_numpy(float) == pytest.approx(found.table["bic"].to_numpy(float), rel=1e-14)
    assert table["bic"].astype(float).is_monotonic_increasing
    best = bm.GaussianMixture.load(tmp_path / "out" / "mixture.json")
    np.testing.assert_array_equal(best.means, found.best.mixture.means)
    np.testing.assert_array_equal(best.covariances, found.best.mixture.covariances)
    assert result.stdout.count("converged") == 3
    assert "the best of 4 cells" in result.stdout
    names = ["clusters.csv", "clusters.png", "mixture.json", "search.csv", "search.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_an_interrupted_search_writes_nothing_and_goes_on_from_its_checkpoint(
    bayesmix, tmp_path, monkeypatch
):
    from bayesmix import cells

    def pressed_after(calls):
        """Ctrl-C in all calls but the first ones."""
        advance, left = cells.advance_some, iter(range(calls))

        def advanced(*arguments):
            if next(left, None) is None:
                raise KeyboardInterrupt
            advance(*arguments)

        return advanced

    x = np.concatenate([np.linspace(-1, 1, 30) ** 3, 4 + np.linspace(-1, 1, 30)])
    text = "a\n" + "\n".join(map(str, x))
    words = ["search", "data.csv", "-k", "1:3", "--covariance", "tied,full", "--out", "out"]
    ends = ["", "; the same command goes on from cells"]
    for more, end in zip(([], ["--checkpoint", "cells"]), ends):
        with monkeypatch.context() as patch:
            patch.setattr(cells, "cores", lambda: 1)  # a round of few starts is one call
            patch.setattr(cells, "advance_some", pressed_after(1))
            result = bayesmix(*words, *more, text=text)
        assert (result.exit_code, result.stdout) == (130, "")
        assert result.stderr == f"bayesmix: interrupted{end}\n"
        assert not (tmp_path / "out").exists()
    result = bayesmix(*words, *more)
    assert (result.exit_code, result.stderr) == (0, "")
    found = bm.search(x, n_components=[1, 2, 3], covariance=["E", "V"])
    table = pandas.read_csv(tmp_path / "out" / "search.csv")
    assert table["bic"].tolist() == pytest.approx(found.table["bic"].tolist(), rel=1e-14)


@pytest.mark.parametrize("command", [["search"], ["sample", "-k", "1"]])
def test_a_checkpoint_needs_a_place(bayesmix, tmp_path, command):
    for place in (tmp_path, "none/file"):
        result = bayesmix(*command, "old_faithful", "--checkpoint", place)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "--checkpoint must be a file in a folder that exists" in result.stderr


def test_search_says_why_a_cell_is_never_chosen(bayesmix):
    result = bayesmix("search", "data.csv", "-k", "1,2,13", "--covariance", "tied", "--json", text=GOOD)
    cells = json.loads(result.stdout)["cells"]
    assert (cells[-1]["status"], cells[-1]["bic"]) == ("impossible", None)
    assert "12 rows, fewer than 13 clusters" in cells[-1]["reason"]
    shown = bayesmix("search", "data.csv", "-k", "1,2,13", "--covariance", "tied")
    assert "1 cell of 3 never chosen:" in shown.stdout
    assert "E, k = 13: x has 12 rows, fewer than 13 clusters" in shown.stdout


def test_search_without_a_clean_cell_writes_nothing(bayesmix, tmp_path):
    options = ["-k", "2", "--covariance", "full", "--out", "out"]
    result = bayesmix("search", "data.csv", *options, text="a\n" + "1\n" * 6 + "2\n" * 6)
    assert result.exit_code == 1
    assert "none of these cells is clean" in result.stderr
    assert not (tmp_path / "out").exists()


MIXTURE = bm.GaussianMixture.of(
    [0.6, 0.4], [[0.0, 0.0], [4.0, 3.0]], [1.0, 2.0], covariance="VII", feature_names=("u", "v")
)


@pytest.fixture
def mixture(tmp_path):
    """A known mixture in a file, and rows of it in another, with a column too many and in another order."""
    MIXTURE.save(tmp_path / "mixture.json")
    x, z = MIXTURE.simulate(60, key=3)
    pandas.DataFrame({"v": x[:, 1], "id": ["word"] * 60, "u": x[:, 0], "z": z}).to_csv(
        tmp_path / "rows.csv", index=False
    )
    return x, z


def test_simulate_draws_what_the_mixture_draws(bayesmix, mixture, tmp_path):
    x, z = mixture
    result = bayesmix("simulate", "mixture.json", "-n", 60, "--key", 3)
    assert (result.exit_code, result.stderr) == (0, "")
    heading, *lines = (line.split(",") for line in result.stdout.splitlines())
    assert heading == ["u", "v", "z"]
    assert [[float(u), float(v), int(c)] for u, v, c in lines] == np.column_stack([x, z]).tolist()
    written = bayesmix("simulate", "mixture.json", "-n", 60, "--key", 3, "--out", "new/x.parquet")
    assert written.stdout == f"Wrote 60 rows to {Path('new', 'x.parquet')}\n"
    rows = pandas.read_parquet(tmp_path / "new" / "x.parquet")
    np.testing.assert_array_equal(rows[["u", "v"]], x)
    np.testing.assert_array_equal(rows["z"], z)
    document = json.loads(bayesmix("simulate", "mixture.json", "-n", 60, "--key", 3, "--json").stdout)
    assert document["rows"] == {"x": x.tolist(), "z": z.tolist()}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mixture.json", "-n", 0], "n must be at least 1"),
        (["mixture.json", "-n", 3, "--labels", "u"], "name of a feature"),
        (["mixture.json", "-n", 3, "--out", "x.txt"], ".csv, .parquet"),
        (["rows.csv", "-n", 3], "rows.csv is not a mixture"),
        (["none.json", "-n", 3], "no file 'none.json'"),
    ],
)
def test_simulate_says_what_is_wrong(bayesmix, mixture, words, expected):
    result = bayesmix("simulate", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1


def test_compare_puts_mixtures_side_by_side(bayesmix, mixture, tmp_path):
    x, z = mixture
    one = bm.GaussianMixture.of([1.0], [[1.0, 1.0]], [6.0], covariance="VII", feature_names=("u", "v"))
    one.save(tmp_path / "one.json")
    options = ["--features", "u,v", "--labels", "z", "--out", "table.csv", "--json"]
    result = bayesmix("compare", "rows.csv", "one.json", "mixture.json", *options)
    assert (result.exit_code, result.stderr) == (0, "")
    rows = json.loads(result.stdout)["table"]
    assert [row["mixture"] for row in rows] == ["mixture.json", "one.json"]
    total = MIXTURE.log_density(x).sum()
    r = MIXTURE.responsibilities(x)
    assert rows[0]["log_likelihood"] == pytest.approx(total, rel=1e-12)
    assert rows[0]["bic"] == pytest.approx(-2 * total + 7 * math.log(60), rel=1e-12)
    assert rows[0]["aic"] == pytest.approx(-2 * total + 14, rel=1e-12)
    assert rows[0]["icl"] - rows[0]["bic"] == pytest.approx(-2 * np.log(r.max(axis=1)).sum(), rel=1e-6)
    assert rows[0]["entropy"] == pytest.approx(-(r * np.log(r)).sum(), rel=1e-9)
    assert rows[1]["difference"] == pytest.approx(rows[1]["bic"] - rows[0]["bic"])
    assert rows[0]["adjusted_rand_index"] == adjusted_rand_index(z, MIXTURE.classify(x))
    assert pandas.read_csv("table.csv")["mixture"].tolist() == ["mixture.json", "one.json"]


def test_compare_says_so_where_the_density_of_a_row_is_zero(bayesmix, mixture):
    result = bayesmix("compare", "data.csv", "mixture.json", text="u,v\n1,2\n1e200,3\n")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "-inf" in result.stdout


@pytest.mark.parametrize("names", [None, ("x0", "x1")])
def test_features_that_were_never_named_are_taken_by_position(bayesmix, mixture, tmp_path, names):
    x, _ = mixture
    bm.GaussianMixture(MIXTURE.weights, MIXTURE.means, MIXTURE.covariance, names).save("unnamed.json")
    pandas.DataFrame(x, columns=["u", "v"]).to_csv("data.csv", index=False)
    table = json.loads(bayesmix("compare", "data.csv", "unnamed.json", "mixture.json", "--json").stdout)[
        "table"
    ]
    assert table[0]["bic"] == table[1]["bic"]
    for kind in ("clusters", "check"):
        result = bayesmix("plot", "unnamed.json", "data.csv", "--kind", kind)
        assert (result.exit_code, result.stderr) == (0, "")
    for words in (
        ["compare", "rows.csv", "unnamed.json", "--features", "u,v,z"],
        ["plot", "unnamed.json", "galaxies"],
    ):
        result = bayesmix(*words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert re.search("has (1 feature|3 features), and unnamed.json has 2", result.stderr)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mixture.json", "posterior.nc"], "all end in .json, or all in .nc or .zarr"),
        (["mixture.json", "mixture.json"], "given twice"),
        (["none.json"], "no file 'none.json'"),
        (["none.nc"], "no file 'none.nc'"),
        (["none.nc", "none.zarr"], "no file 'none.nc'"),
        (["-k", "two"], "--n-components"),
    ],
)
def test_compare_says_what_is_wrong(bayesmix, mixture, words, expected):
    result = bayesmix("compare", "rows.csv", "--features", "u,v", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr


@pytest.mark.parametrize("kind", [name for name, row in KINDS.items() if row.of == "mixture"])
def test_plot_draws_every_kind(bayesmix, mixture, tmp_path, kind):
    from matplotlib.image import imread

    result = bayesmix("plot", "mixture.json", "rows.csv", "--kind", kind, "--out", f"new/{kind}.png")
    assert (result.exit_code, result.stderr) == (0, "")
    assert imread(tmp_path / "new" / f"{kind}.png").std() > 0.01


def test_plot_writes_what_the_suffix_says(bayesmix, mixture, tmp_path):
    for name, start in (("figure.svg", b"<?xml"), ("figure.pdf", b"%PDF")):
        result = bayesmix("plot", "mixture.json", "--out", name, "--json")
        assert json.loads(result.stdout)["files"] == [name]
        assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mixture.json", "rows.csv", "--kind", "pie"], "--kind must be one of 'clusters'"),
        (["mixture.json", "--kind", "check"], "needs the data"),
        (["mixture.json", "--kind", "band"], "of mixture.json there are clusters, density"),
        (["mixture.json", "--out", "figure.doc"], ".png, .svg, .pdf"),
        (["mixture.json", "iris"], "iris has no column 'u'"),
        (["rows.csv"], "not a mixture"),
    ],
)
def test_plot_says_what_is_wrong(bayesmix, mixture, tmp_path, words, expected):
    result = bayesmix("plot", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mixture.json", "rows.csv"]


def test_a_reader_that_went_away_is_no_error(mixture, tmp_path):
    code = "from bayesmix.cli import main; main()"
    command = [sys.executable, "-c", code, "simulate", "mixture.json", "-n", "60"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_adjusted_rand_index_is_scikit_learns():
    from sklearn.metrics import adjusted_rand_score

    generator = np.random.default_rng(0)
    for n, k, m in ((1, 1, 1), (2, 2, 1), (7, 2, 7), (30, 3, 4), (500, 2, 9)):
        for _ in range(20):
            one, other = generator.integers(k, size=n), generator.integers(m, size=n)
            words = np.array(["b", "a", "d", "c", "e", "f", "g", "h", "i"])[other]
            assert adjusted_rand_index(one, words) == pytest.approx(
                adjusted_rand_score(one, other), abs=1e-12
            )
    same = np.arange(40)
    for one, other in ((same, same), (same * 0, same * 0), (same, same * 0)):
        assert adjusted_rand_index(one, other) == adjusted_rand_score(one, other)
    huge = np.arange(200_000) % 2
    assert adjusted_rand_index(huge, 1 - huge) == 1.0


def test_cross_counts_count_pairs_of_names():
    rows, columns, counts = cross_counts(["b", "a", "b"], [5, 5, 1])
    assert (rows.tolist(), columns.tolist(), counts.tolist()) == (["a", "b"], [1, 5], [[0, 1], [1, 1]])
    for one, other in (([], []), ([1], [1, 2]), ([[1]], [[1]])):
        with pytest.raises(ValueError, match="two clusterings of the same rows"):
            cross_counts(one, other)
