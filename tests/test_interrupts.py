"""Long runs stop when they are asked to, give back what is finished, and go on from a checkpoint to the same result."""

import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import bayesmix as bm
from bayesmix import cells, chains, gap, resample
from bayesmix.checkpoints import Checkpoint

X = np.concatenate([np.linspace(-1, 1, 30) ** 3, 4 + np.linspace(-1, 1, 30)])
SEARCH = {"n_components": [1, 2, 3], "covariance": ["E", "V"]}
GIBBS = {"key": 3, "method": "gibbs", "n_chains": 2, "n_warmup": 20, "n_draws": 40, "thinning": 1}
NUTS = {**GIBBS, "method": "nuts", "n_chains": 1}
MODEL = bm.MixtureModel(2, "V", prior="weak")


def pressed_at(monkeypatch, module, name, call):
    """Ctrl-C in the so-manieth call of a function, and in those after it."""
    function, count = getattr(module, name), iter(range(1, 10**6))

    def counted(*arguments, **options):
        if next(count) >= call:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    for other in ("lower", "eval_shape"):
        setattr(counted, other, getattr(function, other, None))
    monkeypatch.setattr(module, name, counted)


def same_fits(one, other):
    assert one.keys() == other.keys()
    for cell in one:
        for a, b in zip(
            jax.tree.leaves(one[cell].mixture), jax.tree.leaves(other[cell].mixture), strict=True
        ):
            assert_array_equal(a, b)
        assert one[cell].log_likelihood == other[cell].log_likelihood
        assert one[cell].n_agree == other[cell].n_agree


@pytest.fixture(scope="module")
def whole():
    """A search in many short rounds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "_MORE", 5)
        yield bm.search(X, **SEARCH)


@pytest.mark.parametrize("call", [1, 2, 4])
def test_an_interrupted_search_gives_back_its_finished_cells_and_goes_on(tmp_path, monkeypatch, whole, call):
    path = tmp_path / "search"
    with monkeypatch.context() as patch:
        patch.setattr(cells, "cores", lambda: 1)  # a round of few starts is one call
        pressed_at(patch, cells, "advance_some", call)
        if call == 1:  # before any cell is finished
            with pytest.raises(KeyboardInterrupt):
                bm.search(X, **SEARCH, checkpoint=path)
        else:
            with pytest.warns(
                UserWarning, match="the search was interrupted: . of 6 cells are finished; the same call"
            ):
                part = bm.search(X, **SEARCH, checkpoint=path)
            assert 0 < len(part.cells) < 6
            assert set(part.cells) | set(part.reasons) == set(whole.cells)
            same_fits(part.cells, {cell: whole.cells[cell] for cell in part.cells})
            assert (part.table["status"] == "interrupted").sum() == 6 - len(part.cells)
            assert part.best.converged
    with monkeypatch.context() as patch:  # the rounds that are done are not run again
        count = []
        advance = cells.advance_some
        patch.setattr(cells, "advance_some", lambda *a: (count.append(a), advance(*a)))
        same_fits(bm.search(X, **SEARCH, checkpoint=path).cells, whole.cells)
        rest = len(count)
        same_fits(bm.search(X, **SEARCH, checkpoint=path).cells, whole.cells)
    assert rest == len(count)  # and a search that is done runs nothing
    if call > 1:
        with pytest.raises(ValueError, match=r"another search: x differs; n_starts was 4 and is 5\."):
            bm.search(X + 1, **SEARCH, n_starts=5, checkpoint=path)
        with pytest.raises(ValueError, match="is a checkpoint of search, not of sample_posterior"):
            bm.sample_posterior(MODEL, X, **GIBBS, checkpoint=path)


@pytest.mark.parametrize("options", [GIBBS, NUTS], ids=["gibbs", "nuts"])
def test_an_interrupted_sampler_gives_back_its_draws_and_goes_on(tmp_path, monkeypatch, options):
    monkeypatch.setitem(chains._CHUNK, options["method"], 20)
    run = {**options, "relabelling": None}
    path = tmp_path / "chains"
    turns = run["n_chains"]  # each advanced by a call of its own
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*transitions diverged")
        pressed_at(patch, chains, "_advance", 1 + turns)  # in the second chunk: nothing after warm-up
        with pytest.raises(KeyboardInterrupt):
            bm.sample_posterior(MODEL, X, **run, checkpoint=path)
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*transitions diverged")
        pressed_at(patch, chains, "_advance", 1 + turns)  # and again in the third
        with pytest.warns(UserWarning, match="each chain has 20 of 40 draws; the same call goes on"):
            part = bm.sample_posterior(MODEL, X, **run, checkpoint=path)
    assert part["posterior"].attrs["status"] == "interrupted: 20 of 40 draws a chain"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*transitions diverged")
        resumed = bm.sample_posterior(MODEL, X, **run, checkpoint=path)
        whole = bm.sample_posterior(MODEL, X, **run)
    for group in ("posterior", "sample_stats", "allocations", "log_likelihood"):
        assert resumed[group].to_dataset().equals(whole[group].to_dataset())
    assert whole["posterior"].attrs["status"] == "complete"
    for name in ("weights", "means"):
        assert_array_equal(part["posterior"][name], whole["posterior"][name][:, :20])
    with pytest.raises(ValueError, match=r"another sample_posterior: key was .* n_draws was 40 and is 60"):
        bm.sample_posterior(MODEL, X, **{**run, "n_draws": 60, "key": 4}, checkpoint=path)


def test_an_interrupted_bootstrap_gives_back_its_first_replicates(monkeypatch):
    fit = bm.fit(bm.MixtureModel(2, "V"), X)
    whole = bm.bootstrap(fit, X, key=0, n_draws=80)
    assert whole["posterior"].attrs["status"] == "complete"
    with monkeypatch.context() as patch:
        pressed_at(patch, resample, "_run", 2)
        with pytest.warns(UserWarning, match="the bootstrap was interrupted: 32 of 80 replicates"):
            part = bm.bootstrap(fit, X, key=0, n_draws=80)
        assert part["posterior"].attrs["status"] == "interrupted: 32 of 80 replicates"
        assert part["posterior"].attrs["n_draws"] == 32
        assert_array_equal(part["posterior"]["means"], whole["posterior"]["means"][:, :32])
        with pytest.raises(KeyboardInterrupt):  # nothing is finished
            bm.bootstrap(fit, X, key=0, n_draws=80)
        with pytest.raises(KeyboardInterrupt):  # a part of a jackknife is of no use
            bm.jackknife(fit, X)


def test_an_interrupted_search_over_kmeans_gives_back_what_it_has(monkeypatch):
    pressed_at(monkeypatch, gap, "kmeans", 30)  # 21 for each number of clusters
    with pytest.warns(UserWarning, match="the search was interrupted: 1 of 3 numbers of clusters"):
        part = bm.search(X, n_components=[1, 2, 3], covariance="kmeans")
    assert list(part.fits) == list(part.gaps) == [1]
    assert part.table["status"].tolist() == ["converged", "interrupted", "interrupted"]
    assert part.best.mixture.n_components == 1
    with pytest.raises(KeyboardInterrupt):
        bm.search(X, n_components=[2], covariance="kmeans")


def test_a_signal_is_answered_between_calls_and_the_second_at_once():
    code = """
import os, signal, time, warnings
import numpy as np
import bayesmix as bm
from bayesmix import resample
from bayesmix.interrupts import patient

x = np.concatenate([np.linspace(-1, 1, 30) ** 3, 4 + np.linspace(-1, 1, 30)])
fit = bm.fit(bm.MixtureModel(2, "V"), x)
run, calls = resample._run, iter(range(10**6))

def press(*arguments, **options):
    call = next(calls)
    if call:
        time.sleep(0.2)  # every thread is in a call by then, and none does all the rest before the signal is heard
    if call == 1:
        os.kill(os.getpid(), signal.SIGINT)
    return run(*arguments, **options)

resample._run = press
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    tree = bm.bootstrap(fit, x, key=0, n_draws=320)
print(tree["posterior"].attrs["status"], [str(w.message)[:29] for w in told])
assert 64 <= tree["posterior"].sizes["draw"] < 320
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
with patient() as patience:
    os.kill(os.getpid(), signal.SIGINT)
    assert patience.asked and not patience.again
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    except KeyboardInterrupt:
        print("at once")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "interrupted" in done.stdout
    assert "['the bootstrap was interrupted']" in done.stdout
    assert done.stdout.endswith("at once\n")


def test_a_checkpoint_that_is_no_such_file_is_one_error(tmp_path):
    made_from = {"n": 1}
    kept = Checkpoint.at(tmp_path / "c", "test", lambda: made_from)
    assert kept.read() is None
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(True), "c": np.zeros((0, 2), np.uint32)}
    kept.write(lambda: arrays)
    for name, array in kept.read().items():
        assert array.dtype == arrays[name].dtype
        assert_array_equal(array, arrays[name])
    raw = (tmp_path / "c").read_bytes()
    generator = np.random.default_rng(0)
    for place in generator.integers(len(raw), size=40).tolist():
        (tmp_path / "c").write_bytes(raw[:place] + bytes([raw[place] ^ (1 << place % 8)]) + raw[place + 1 :])
        with pytest.raises(ValueError, match="is no checkpoint that can be used"):
            kept.read()
        (tmp_path / "c").write_bytes(raw[:place])
        with pytest.raises(ValueError, match="is no checkpoint that can be used"):
            kept.read()
    for path in (tmp_path / "none" / "c", tmp_path, 3):
        with pytest.raises(ValueError, match="checkpoint must be"):
            bm.search(X, **SEARCH, checkpoint=path)
    with pytest.raises(ValueError, match="has none"):
        bm.sample_posterior(MODEL, X, key=0, method="laplace", checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="k-means"):
        bm.search(X, n_components=2, covariance="kmeans", checkpoint=tmp_path / "c")
