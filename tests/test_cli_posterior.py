"""The commands about posteriors: what `sample` writes and says, and what `compare` and `plot` make of it."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from browser import WIDTHS, assert_sound, browser
from typer.testing import CliRunner

import bayesmix as bm
from bayesmix import chains, cli
from bayesmix.cli.plot import KINDS

SHORT = ["--method", "gibbs", "--n-warmup", "200", "--n-draws", "500"]
FILES = [
    "clusters.csv",
    "density.png",
    "diagnosis.csv",
    "labels.png",
    "posterior.nc",
    "summary.csv",
]


def bayesmix(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A good run, with known classes and a report; its folder, result and data."""
    folder = tmp_path_factory.mktemp("sampled")
    x = bm.datasets.load("old_faithful")
    kinds = np.where(x["eruptions"] > 3, "long", "short")
    data, out, report = folder / "geyser.csv", folder / "out", folder / "report.html"
    x.assign(kind=kinds).to_csv(data, index=False)
    options = [*SHORT, "--labels", "kind", "--out", out, "--report", report, "--json"]
    result = bayesmix("sample", data, "-k", 2, *options)
    return SimpleNamespace(data=data, out=out, report=report, result=result, x=x, kinds=kinds)


@pytest.fixture(scope="module")
def posterior():
    x = bm.datasets.load("old_faithful")
    options = {"key": 0, "method": "gibbs", "n_warmup": 200, "n_draws": 500}
    return bm.sample_posterior(bm.MixtureModel(2, prior="weak"), x, **options)


def test_the_draws_are_those_of_sample_posterior(sampled, posterior):
    from bayesmix.cli.tables import load_posterior

    assert (sampled.result.exit_code, sampled.result.stderr) == (0, "")
    assert sorted(path.name for path in sampled.out.iterdir()) == FILES
    again = load_posterior(str(sampled.out / "posterior.nc"))
    for name in ("weights", "means", "covariances"):
        np.testing.assert_array_equal(again["posterior"][name], posterior["posterior"][name])
    np.testing.assert_array_equal(again["allocations"]["z"], posterior["allocations"]["z"])
    assert bm.mixtures(again).means.shape == (4, 500, 2, 2)


def test_tables_say_what_the_draws_say(sampled, posterior):
    summary = pandas.read_csv(sampled.out / "summary.csv", index_col="parameter")
    draws = posterior["posterior"]["means"].values[..., 1, 0].ravel()
    row = summary.loc["means[1, eruptions]"]
    assert row["mean"] == pytest.approx(draws.mean(), rel=1e-9)
    assert row[["2.5%", "97.5%"]].tolist() == pytest.approx(np.quantile(draws, [0.025, 0.975]), rel=1e-3)
    assert len(summary) == 2 + 4 + 2 * 3  # each covariance once
    assert "covariances[1, waiting, eruptions]" in summary.index
    clusters = pandas.read_csv(sampled.out / "clusters.csv", index_col="row")
    r = posterior["allocations"]["responsibilities"].values
    np.testing.assert_allclose(clusters[["p0", "p1"]], r, rtol=1e-12)
    np.testing.assert_array_equal(clusters["cluster"], r.argmax(axis=1))
    diagnosis = pandas.read_csv(sampled.out / "diagnosis.csv")
    assert diagnosis["verdict"].tolist() == bm.diagnose(posterior).table["verdict"].tolist()


def test_json_has_the_verdict(sampled, posterior):
    found = json.loads(sampled.result.stdout)
    assert found["trusted"] is True
    assert found["verdict"] == bm.diagnose(posterior).verdict
    assert found["labels"]["adjusted_rand_index"] == 1
    assert found["labels"]["cross_table"] == {"long": [175, 0], "short": [0, 97]}
    assert found["diagnosis"][-1]["r_hat"] is None
    assert len(found["files"]) == len(FILES) + 1


@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_shows_the_report(sampled, width):
    with browser() as chromium:
        text = assert_sound(chromium, sampled.report, width)
    for expected in (
        "Posterior of a Gaussian mixture of geyser.csv",
        "The draws can be trusted.",
        "The 4 chains agree",
        "4 × 500",
        "means[1, eruptions]",
        "adjusted Rand index 1.000",
        "bayesmix sample",
    ):
        assert expected in text


def test_draws_that_cannot_be_trusted_are_written_and_end_with_one(sampled, tmp_path, monkeypatch):
    monkeypatch.setattr("bayesmix.convergence.DRAWS", 10**6)  # as if so many draws were asked for
    options = [*SHORT, "--features", "eruptions,waiting", "--out", tmp_path / "out", "--format", "parquet"]
    result = bayesmix("sample", sampled.data, "-k", 2, *options)
    assert result.exit_code == 1
    assert "run longer" in result.stdout
    assert result.stderr == "bayesmix: these draws cannot be trusted, for the reasons above\n"
    table = pandas.read_parquet(tmp_path / "out" / "diagnosis.parquet")
    assert "run longer" in table["verdict"][0]
    assert (tmp_path / "out" / "posterior.nc").is_file()


def pressed_after(calls, function):
    """Ctrl-C in all calls of a compiled function but the first ones."""
    left = iter(range(calls))

    def called(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return function(*arguments)

    called.lower = function.lower
    return called


@pytest.mark.parametrize("command", [["sample", "-k", 2, "--n-chains", 2], ["compare", "-k", "2,3"]])
def test_a_part_of_the_draws_is_not_written(tmp_path, monkeypatch, command):
    monkeypatch.setitem(chains._CHUNK, "gibbs", 20)
    monkeypatch.setattr(chains, "_advance", pressed_after(8, chains._advance))  # a chain's chunk is a call
    options = ["--n-warmup", 30, "--n-draws", 100, "--out", tmp_path / "out.csv"]
    options += ["--method", "gibbs"] if command[0] == "sample" else []
    result = bayesmix(*command, "old_faithful", *options)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "bayesmix: interrupted\n"
    assert not any(tmp_path.iterdir())


def test_the_same_command_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(chains._CHUNK, "gibbs", 20)
    words = ["sample", "old_faithful", "-k", 2, "--method", "gibbs", "--n-warmup", 30, "--n-draws", 100]
    words += ["--out", "out", "--checkpoint", "chains"]
    with monkeypatch.context() as patch:
        patch.setattr(chains, "_advance", pressed_after(8, chains._advance))
        result = bayesmix(*words)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "bayesmix: interrupted; the same command goes on from chains\n"
    assert [path.name for path in tmp_path.iterdir()] == ["chains"]
    assert bayesmix(*words).exit_code in (0, 1)
    options = {"key": 0, "method": "gibbs", "n_warmup": 30, "n_draws": 100}
    whole = bm.sample_posterior(bm.MixtureModel(2, prior="weak"), bm.datasets.load("old_faithful"), **options)
    again = bm.load("out/posterior.nc")
    for name in ("weights", "means", "covariances"):
        np.testing.assert_array_equal(again["posterior"][name], whole["posterior"][name])
    result = bayesmix(*words, "--key", 1)
    assert result.exit_code == 2
    assert "key was" in result.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-k", 2, "--method", "laplace", "--checkpoint", "chains"], "checkpoint is for the chains"),
        (["-k", 2, "--method", "slice"], "'slice'"),
        (["-k", 2, "--covariance", "VVE"], "VVE"),
        (["-k", 0], "n_components"),
        (["-k", 2, "--prior", "lkj", "--method", "gibbs"], "gibbs needs a conjugate prior"),
        (["-k", 2, "--n-draws", 0], "n_draws must be at least 1"),
    ],
)
def test_sample_says_what_is_wrong(options, expected, tmp_path):
    result = bayesmix("sample", "old_faithful", *options, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_posterior_without_h5netcdf_names_the_extra(monkeypatch, tmp_path):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = bayesmix("sample", "old_faithful", "-k", 2, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "bayesmix[netcdf]" in result.stderr


def test_posteriors_side_by_side(sampled, posterior, tmp_path):
    one, other = sampled.out / "posterior.nc", tmp_path / "same.nc"
    other.write_bytes(one.read_bytes())
    options = ["--features", "eruptions,waiting", "--json"]
    result = bayesmix("compare", sampled.data, one, other, *options)
    assert (result.exit_code, result.stderr) == (0, "")
    table = json.loads(result.stdout)["table"]
    expected = bm.compare({str(one): posterior, str(other): posterior}, key=0)
    assert [row["elpd_loo"] for row in table] == pytest.approx(expected["elpd_loo"].astype(float).tolist())
    assert table[1]["difference"] == 0
    assert table[0]["log_evidence"] == pytest.approx(expected["log_evidence"].iloc[0])


def test_posteriors_are_zarr_stores_too(sampled, posterior, tmp_path):
    one, other = sampled.out / "posterior.nc", tmp_path / "posterior.zarr"
    bm.save(posterior, other)
    result = bayesmix("compare", sampled.data, one, f"{other}/", "--features", "eruptions,waiting", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    table = json.loads(result.stdout)["table"]
    assert table[0]["elpd_loo"] == table[1]["elpd_loo"]
    for store in (other, f"{other}/"):  # shells end names of folders so
        result = bayesmix("plot", store, "--kind", "coclustering", "--out", tmp_path / "figure.png")
        assert (result.exit_code, result.stderr) == (0, "")


def test_columns_of_a_posterior_are_taken_by_name_and_otherwise_by_position(sampled, posterior, tmp_path):
    paths = [tmp_path / f"{name}.nc" for name in ("named", "unnamed")]
    bm.save(posterior, paths[0])
    turned = bayesmix(
        "compare", sampled.data, paths[0], sampled.out / "posterior.nc", "--features", "waiting,eruptions"
    )
    assert (turned.exit_code, turned.stderr) == (0, "")
    names = {"feature": ["x0", "x1"], "feature_bis": ["x0", "x1"]}
    unnamed = posterior.map_over_datasets(
        lambda part: part.assign_coords({name: names[name] for name in names if name in part.coords})
    )
    bm.save(unnamed, paths[1])
    options = ["--kind", "band", "--out", tmp_path / "band.png"]
    for words in (["compare", "old_faithful", *paths], ["plot", paths[1], "old_faithful", *options]):
        result = bayesmix(*words)
        assert (result.exit_code, result.stderr) == (0, "")
    result = bayesmix("plot", paths[1], "galaxies", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "galaxies has 1 feature, and" in result.stderr


@pytest.mark.parametrize(
    ("module", "ending", "extra"), [("h5netcdf", "nc", "netcdf"), ("zarr", "zarr", "zarr")]
)
def test_posteriors_that_cannot_be_read_name_the_extra(
    sampled, posterior, tmp_path, monkeypatch, module, ending, extra
):
    path = tmp_path / f"posterior.{ending}"
    bm.save(posterior, path)
    monkeypatch.setitem(sys.modules, module, None)
    for words in (["plot", path, "--kind", "band"], ["compare", "old_faithful", path, path.parent / "b.nc"]):
        result = bayesmix(*words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"bayesmix[{extra}]" in result.stderr


@pytest.mark.parametrize(
    ("data", "words", "expected"),
    [
        ("galaxies", ["one.nc", "two.nc"], "one.nc is a posterior of other data than galaxies"),
        ("old_faithful", ["one.nc"], "two posteriors at least"),
        ("old_faithful", ["-k", 2], "two posteriors at least"),
        ("old_faithful", ["bad.nc", "one.nc"], "bad.nc is not a mixture, fit or posterior"),
    ],
)
def test_posteriors_that_cannot_be_compared(sampled, tmp_path, monkeypatch, data, words, expected):
    monkeypatch.chdir(tmp_path)
    for name in ("one.nc", "two.nc"):
        (tmp_path / name).symlink_to(sampled.out / "posterior.nc")
    (tmp_path / "bad.nc").write_bytes(b"no netCDF")
    result = bayesmix("compare", data, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr


def test_compare_samples_where_no_files_are_given(posterior, tmp_path, monkeypatch):
    asked = []

    def sample(model, x, **options):
        asked.append((model.covariance, model.n_components, model.prior, len(x), options))
        return posterior

    monkeypatch.setattr(bm, "sample_posterior", sample)  # sampled once is enough
    options = ["-k", "1:2", "--covariance", "full,diag", "--n-draws", 500, "--key", 4]
    result = bayesmix("compare", "old_faithful", *options, "--out", tmp_path / "table.csv")
    assert (result.exit_code, result.stderr) == (0, "")
    run = {"key": 4, "method": "gibbs", "n_warmup": 1000, "n_draws": 500}
    models = [("VVV", 1), ("VVV", 2), ("VVI", 1), ("VVI", 2)]
    assert asked == [(name, k, "weak", 272, run) for name, k in models]
    table = pandas.read_csv(tmp_path / "table.csv", index_col="posterior")
    assert set(table.index) == {f"{name}, k = {k}" for name, k in models}
    assert table["difference"].tolist() == [0] * 4
    assert "VVI, k = 1" in result.stdout


@pytest.mark.parametrize("kind", [name for name, row in KINDS.items() if row.of == "posterior"])
def test_plot_draws_every_kind(sampled, tmp_path, kind):
    from matplotlib.image import imread

    path = tmp_path / f"{kind}.png"
    result = bayesmix("plot", sampled.out / "posterior.nc", "--kind", kind, "--out", path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert imread(path).std() > 0.01
