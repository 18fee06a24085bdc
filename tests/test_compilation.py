"""Few programs are compiled; their cache is only on request, used by the next process, and in a safe place."""

import logging
import re
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

import bayesmix as bm


@pytest.fixture
def compiled(monkeypatch):
    """The names of programs that were compiled, or looked up on disk, since it was asked for last."""
    names = []

    class Handler(logging.Handler):
        def emit(self, record):
            found = re.match(r"Finished XLA compilation of (\S+) in", record.getMessage())
            if found:
                names.append(found[1])

    def since():
        taken = sorted(names)
        names.clear()
        return taken

    handler, logger = Handler(), logging.getLogger("jax")
    jax.clear_caches()  # whatever tests ran before in this process
    before = jax.config.jax_log_compiles
    jax.config.update("jax_log_compiles", True)
    logger.addHandler(handler)
    monkeypatch.setattr(logger, "propagate", False)
    yield since
    logger.removeHandler(handler)
    jax.config.update("jax_log_compiles", before)


def test_a_search_over_k_compiles_one_loop_and_the_next_none(compiled):
    x = bm.datasets.load("old_faithful").to_numpy()
    bm.search(x, n_components=range(1, 10), covariance="VVV")
    assert compiled().count("jit(advance)") == 1  # cells are padded to the largest k, so not nine
    bm.search(x[::-1] * 3, n_components=range(1, 10), covariance="VVV", key=1)  # other data of that shape
    bm.search(x[:260], n_components=range(1, 10), covariance="EEE")  # padded to as many; of the same storage
    assert compiled() == []


@pytest.mark.parametrize("method", ["gibbs", "nuts", "laplace"])
@pytest.mark.parametrize("structure", ["VVV", "EEI"])
def test_programs_of_a_posterior_are_compiled_ahead_once_and_never_again(compiled, method, structure):
    x = bm.datasets.load("old_faithful").to_numpy()[:90]
    options = {"method": method, "n_chains": 4, "n_warmup": 30, "n_draws": 50}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* (diverged|Pareto k) ?.*")
        bm.sample_posterior(bm.MixtureModel(2, structure, "weak"), x, key=0, **options)
        named = compiled()
        # Those that are compiled ahead are those that are called: a shape that differs would be a program too many.
        assert "jit(_allocate)" in named
        long = [name for name in named if re.match(r"jit\((_|advance|realize|unconstrained)", name)]
        assert sorted(set(long)) == long
        bm.sample_posterior(bm.MixtureModel(2, structure, "weak"), x[::-1] * 2, key=1, **options)
    assert compiled() == []


def test_fits_compile_once_a_shape_whatever_n_starts_tolerance_and_weights(compiled):
    x = bm.datasets.load("old_faithful").to_numpy()
    bm.fit(bm.MixtureModel(2, "VII"), x)
    assert compiled() == ["jit(advance)"]
    for n, tol, n_starts in ((272, 1e-3, 1), (260, 1e-6, 3), (300 - 43, 1e-4, 20)):
        options = {"tol": tol, "n_starts": n_starts, "key": n, "sample_weight": np.arange(n) + 1.0}
        bm.fit(bm.MixtureModel(2, "VII"), x[:n] * 7, **options)
    assert compiled() == []


SCRIPT = """
import sys
import jax
import bayesmix as bm
hits, misses = [], []
jax.monitoring.register_event_listener(
    lambda name, **_: {"/jax/compilation_cache/cache_hits": hits, "/jax/compilation_cache/cache_misses": misses}
    .get(name, []).append(name)
)
x = bm.datasets.load("old_faithful")
jax.jit(lambda x: x + 1)(1.0)  # JAX settles on no cache
if sys.argv[1]:
    bm.enable_compilation_cache(sys.argv[1])
fit = bm.fit(bm.MixtureModel(2, "VII"), x, n_starts=1)
print(len(hits), len(misses), repr(fit.log_likelihood))
"""


def run(folder):
    environment = {"PATH": "", "JAX_PLATFORMS": "cpu", "HOME": str(folder) if folder else "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    hits, misses, log_likelihood = done.stdout.split()
    return int(hits), int(misses), log_likelihood


def test_the_next_process_compiles_nothing_of_a_fit(tmp_path):
    first, second = run(tmp_path / "programs"), run(tmp_path / "programs")
    assert first[0] == 0 < first[1]
    assert second[1] == 0 < second[0]
    assert first[2] == second[2]
    assert any((tmp_path / "programs").iterdir())


def test_nothing_is_kept_unasked(tmp_path):
    assert run("")[:2] == (0, 0)


@pytest.fixture
def settings():
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()


def test_the_folder_is_jaxs_own_else_the_users_else_an_error(tmp_path, monkeypatch, settings):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert bm.enable_compilation_cache() == tmp_path / "own"
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    folder = bm.enable_compilation_cache()
    assert folder == tmp_path / "user" / "bayesmix"
    assert folder.stat().st_mode & 0o077 == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="one that can be made"):
        bm.enable_compilation_cache(tmp_path / "file")
    with pytest.raises(ValueError, match="one that can be made"):
        bm.enable_compilation_cache(3.5)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ValueError, match="other users may write"):
        bm.enable_compilation_cache(tmp_path / "open")
