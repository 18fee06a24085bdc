"""What runs where: long passes go to an accelerator, and give there what they give on the processor.

Without one, the processor stands in for it, so that the way there is walked all the same; with one, `on_device` is it.
"""

import jax
import numpy as np
import pytest

import bayesmix as bm
from bayesmix import devices
from bayesmix.problem import prepare

N, D, K = 3000, 3, 3
GPU = jax.default_backend() != "cpu"


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    means = np.array([[0.0, 0.0, 0.0], [4.0, 0.0, 1.0], [0.0, 5.0, -1.0]])
    return means[rng.integers(K, size=N)] + rng.normal(size=(N, D)) * [1.0, 0.5, 0.8]


@pytest.fixture
def on_device(monkeypatch):
    """A switch: whether passes of any length are worth a device."""
    device = jax.devices()[0]

    def switch(on):
        for module in ("bayesmix.observations", "bayesmix.evaluate"):
            monkeypatch.setattr(f"{module}.accelerator", lambda numbers: device if on else None)

    return switch


def _fit(x, structure="VVV"):
    """Of so many steps: where a fit stops on its own hangs on the last digits."""
    return bm.fit(bm.MixtureModel(K, structure), x, init=x[[0, 1, 5]], tol=0, max_steps=30)


def _numbers(fit):
    return fit.log_likelihood, fit.mixture.means, fit.mixture.covariances


CALLS = {name: lambda x, name=name: _numbers(_fit(x, name)) for name in ("VVV", "EEE", "VVE", "VVI", "VII")} | {
    "accelerated": lambda x: bm.fit(bm.MixtureModel(K), x, init=x[[0, 1, 5]], accelerate=True).log_likelihood,
    "float32": lambda x: _fit(x.astype(np.float32)).log_likelihood,
    "k-means": lambda x: bm.kmeans(x, K, n_starts=2).inertia,
    "log density": lambda x: _fit(x).mixture.log_density(np.tile(x, (20, 1))),
    "responsibilities": lambda x: _fit(x).mixture.responsibilities(x),
    "standard errors": lambda x: bm.standard_errors(_fit(x), x).means,
    "bootstrap": lambda x: bm.bootstrap(_fit(x), x, n_draws=5, key=0).posterior["means"].to_numpy(),
    "search": lambda x: bm.search(x, n_components=[1, 2, 3], covariance=["VVV", "EII"], n_starts=2).table[
        "log_likelihood"
    ].to_numpy(),
}  # fmt: skip
# Where it is the tolerance that ends a run, a digit of the gain is what is left.
RTOL = {"float32": 1e-5, "search": 1e-6, "accelerated": 1e-6, "bootstrap": 1e-3}


@pytest.mark.parametrize("name", CALLS)
def test_a_device_gives_what_the_processor_gives(x, on_device, name):
    on_device(False)
    processor = CALLS[name](x)
    on_device(True)
    device = CALLS[name](x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=RTOL.get(name, 1e-8), atol=1e-8), device, processor
    )


@pytest.mark.filterwarnings("ignore:.*transitions diverged")
@pytest.mark.parametrize("method", ["gibbs", "nuts"])
def test_chains_run_on_a_device(x, on_device, method):
    on_device(True)
    model = bm.MixtureModel(2, "diag", prior="weak")
    means = bm.sample_posterior(
        model, x[:300], key=0, method=method, n_chains=2, n_warmup=30, n_draws=20
    ).posterior["means"]
    assert means.shape == (2, 20, 2, 3)
    assert np.isfinite(means).all()


def test_data_on_a_device_are_few_blocks_and_stay_there(x, on_device):
    on_device(True)
    observations = prepare(K, "VVV", x, None, 0.0).observations
    assert observations.x.shape == (1, D, 3072)
    assert isinstance(observations.x, jax.Array)
    assert observations.x.dtype == np.float64
    assert observations.x.committed
    problem = prepare(K, "VVV", x.astype(np.float32), None, 0.0)
    assert problem.observations.x.dtype == np.float64  # whose moments need no whitening,
    wide = prepare(K, "VVV", x, None, 0.0).rules.floor
    np.testing.assert_allclose(problem.rules.floor.thin, wide.thin, rtol=1e-5)  # as their rule knows
    assert prepare(K, "VVI", x.astype(np.float32), None, 0.0).observations.x.dtype == np.float32


def test_only_long_passes_are_worth_a_device(monkeypatch):
    class Other:
        platform = "gpu"

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda *kind: [Other])
    assert devices.accelerator(1e4) is None
    assert devices.accelerator(1e8) is Other


def test_the_users_device_decides_for_any_size(monkeypatch):
    class Other:
        platform = "gpu"

    with jax.default_device(jax.devices("cpu")[0]):
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert devices.accelerator(1e8) is None
    monkeypatch.setattr(type(jax.config), "jax_default_device", Other, raising=False)
    assert devices.accelerator(1.0) is Other


def test_beside_an_accelerator_small_work_is_the_processors_and_products_keep_their_digits(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with devices.double_precision():
        assert jax.config.jax_default_device.platform == "cpu"
        assert jax.config.jax_default_matmul_precision == "highest"
        assert jax.config.jax_enable_x64
    assert jax.config.jax_default_device is None
    assert not jax.config.jax_enable_x64


def test_without_a_processor_all_is_on_the_accelerator(monkeypatch):
    def none(*kind):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", none)
    with devices.double_precision():
        assert jax.config.jax_default_device is None
        assert jax.config.jax_enable_x64


@pytest.mark.skipif(not GPU, reason="JAX has no GPU here")
def test_a_gpu_is_taken_for_long_passes_and_left_for_short_ones(x):
    long = prepare(K, "VVV", np.tile(x, (100, 1)), None, 0.0).observations.x
    assert {device.platform for device in long.devices()} == {"gpu"}
    assert isinstance(prepare(K, "VVV", x[:500], None, 0.0).observations.x, np.ndarray)
    few = np.float32(1) + np.arange(3, dtype=np.float32) * np.float32(2**-12)
    with devices.double_precision():
        product = jax.device_put(few[None], jax.devices()[0]) @ few[:, None]
    assert abs(float(product[0, 0]) - float(few.astype(float) @ few)) < 1e-6  # TF32 would round at 1e-3
