"""Effective draws a second of `sample_posterior`, against models that are written by hand, in processes of their own.

    uv run --group benchmarks python benchmarks/posterior.py [--data faithful ...] [--only nuts numpyro ...] [--repeats 3]

Every contender draws 4 chains of 1,000 after a warm-up of 1,000, with its own defaults, twice in one fresh process:
cold is the first call, with compilation; warm is a second call on resampled rows, of the same shape, with another key.
A call includes all that it does: starts, warm-up, draws; bayesmix's also z and the log-likelihood of every point and
draw, and relabelling. Imports are reported apart. Nothing is cached between processes, which alternate.

    nuts, gibbs      bayesmix with its weak prior
    gibbs_unthinned, nuts_unthinned    the same with every step a draw
    nuts_program     bayesmix's NUTS under the prior of the hand-written model, as a program: the same posterior
    numpyro          Dirichlet weights, normal means, half-normal scales, LKJ correlations; MixtureSameFamily, parallel
                     chains on 4 host devices, started at k-means. In one dimension the means are ordered
    numpyro_single   the same in float32, NumPyro's default; all others are in float64
    blackjax         the same log density, window adaptation and NUTS, vectorised chains
    pymc             the same model in PyMC, 2 processes

The hand-written models get standardised columns, as is usual, and are mapped back. For all alike, and outside the
clock, each draw's clusters are put in the order of their first coordinate, so that every quantity is a function of the
unlabelled mixture, and the smallest bulk effective sample size of weights, means and the log-likelihood is taken. The
priors are not the same, so posterior means are printed: they should differ by a fraction of a standard deviation.

A contender that passes the time limit has no effective sample size; its rate is then below the most that ArviZ ever
reports for so many draws, divided by the limit, and the ratio is a lower bound.
"""

import argparse
import json
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, str(len(os.sched_getaffinity(0))))
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import numpy as np

CHAINS, WARMUP, DRAWS = 4, 1000, 1000
BASELINE = "numpyro"


def faithful():
    import bayesmix as bm

    return bm.datasets.load("old_faithful").to_numpy(), 2


def overlapping():
    rng = np.random.default_rng(0)
    z = rng.choice(3, 1000, p=[0.35, 0.4, 0.25])
    return (np.array([-3, 0, 3])[z] + np.array([1, 0.7, 1])[z] * rng.normal(size=1000))[:, None], 3


def large():
    rng, n, d, k = np.random.default_rng(1), 5000, 5, 4
    means, factors = 2 * rng.normal(size=(k, d)), 0.3 * rng.normal(size=(k, d, d)) + np.eye(d)
    z = rng.integers(0, k, n)
    return np.einsum("nd,nde->ne", rng.normal(size=(n, d)), factors[z]) + means[z], k


DATA = {"faithful": faithful, "overlapping": overlapping, "large": large}


# Contenders: k, d -> (call, imported versions); call: data, seed -> (weights, means, covariances, gradients a draw or None)


def bayesmix(method, program=None, **options):
    def prepare(k, d):
        import numpyro

        import bayesmix as bm

        for name in ("arviz", "tqdm", "bayesmix.chain_starts", "bayesmix.draws"):
            import_module(name)  # what a call imports when it is needed counts as import, as for the others
        prior = program(k, d) if program else "weak"

        def call(x, seed):
            center, scale = (x.mean(axis=0), x.std(axis=0)) if program else (0, 1)
            y = (x - center) / scale
            model = bm.MixtureModel(k, prior=prior)
            drawn_of = {"n_chains": CHAINS, "n_warmup": WARMUP, "n_draws": DRAWS, **options}
            tree = bm.sample_posterior(model, y, key=seed, method=method, **drawn_of)
            drawn = tree["posterior"]
            steps = tree["sample_stats"].get("n_steps")
            return to_data(
                drawn["weights"].values,
                drawn["means"].values,
                drawn["covariances"].values,
                center,
                scale,
                None if steps is None else steps.values,
            )

        return call, {"bayesmix": bm.__version__, "numpyro": numpyro.__version__}

    return prepare


def to_data(weights, means, covariances, center, scale, gradients=None):
    """Draws for standardised columns as draws for the data."""
    scale = np.broadcast_to(scale, means.shape[-1:])
    return weights, means * scale + center, covariances * np.outer(scale, scale), gradients


def at_kmeans(x, k):
    """Standardised columns, what undoes that, and where the hand-written models start."""
    from sklearn.cluster import KMeans

    center, scale = x.mean(axis=0), x.std(axis=0)
    y = (x - center) / scale
    found = KMeans(k, n_init=5, random_state=0).fit(y)
    order = np.argsort(found.cluster_centers_[:, 0])
    weights = np.bincount(found.labels_, minlength=k)[order] / len(x)
    within = [y[found.labels_ == j].std(axis=0) for j in order]
    return y, center, scale, (weights, found.cluster_centers_[order], np.array(within))


def hand_written_prior(k, d, ordered=True):
    """Weights, means (k, d) and Cholesky factors (k, d, d), as NumPyro's users draw them.

    Ordered means have k! times the density of exchangeable ones and are the same law of unlabelled mixtures.
    """
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions import constraints

    weights = numpyro.sample("proportions", dist.Dirichlet(jnp.ones(k)))
    if d == 1:
        normal = dist.Normal(0, 2).expand([k]).to_event(1)
        if ordered:
            support = constraints.ordered_vector
            mu = numpyro.sample("mu", dist.ImproperUniform(support, (), event_shape=(k,)))
            numpyro.factor("mu_prior", normal.log_prob(mu))
        else:
            mu = numpyro.sample("mu", normal)
        with numpyro.plate("cluster", k):
            sigma = numpyro.sample("sigma", dist.HalfNormal(1))
        return weights, mu[:, None], sigma[:, None, None]
    with numpyro.plate("cluster", k):
        mu = numpyro.sample("mu", dist.Normal(0, 2).expand([d]).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1).expand([d]).to_event(1))
        correlation = numpyro.sample("correlation", dist.LKJCholesky(d, 2))
    return weights, mu, sigma[:, :, None] * correlation


def hand_written(x, k):
    import numpyro
    import numpyro.distributions as dist

    weights, mu, factor = hand_written_prior(k, x.shape[1])
    chances = dist.Categorical(weights)
    with numpyro.plate("points", x.shape[0]):
        if x.shape[1] == 1:
            normal = dist.Normal(mu[:, 0], factor[:, 0, 0])
            numpyro.sample("x", dist.MixtureSameFamily(chances, normal), obs=x[:, 0])
        else:
            normal = dist.MultivariateNormal(mu, scale_tril=factor)
            numpyro.sample("x", dist.MixtureSameFamily(chances, normal), obs=x)


def values_at(start, d):
    """The sites of the hand-written model at a k-means partition."""
    weights, means, within = start
    values = {"proportions": weights, "mu": means, "sigma": within}
    if d == 1:
        return {name: value if name == "proportions" else value[:, 0] for name, value in values.items()}
    return values | {"correlation": np.tile(np.eye(d), (len(weights), 1, 1))}


def from_sites(sites, center, scale, gradients):
    weights, mu, sigma = (np.asarray(sites[name], np.float64) for name in ("proportions", "mu", "sigma"))
    if mu.ndim == 3:
        mu, factor = mu[..., None], sigma[..., None, None]
    else:
        factor = sigma[..., None] * np.asarray(sites["correlation"], np.float64)
    return to_data(weights, mu, factor @ np.swapaxes(factor, -1, -2), center, scale, gradients)


def program(k, d):
    """The hand-written prior as a program that returns a mixture."""

    def prior():
        import jax.numpy as jnp

        import bayesmix as bm
        from bayesmix.covariance import Covariance, structure_of

        weights, means, factor = hand_written_prior(k, d, ordered=False)
        values = factor @ jnp.swapaxes(factor, -1, -2)
        row = structure_of("full", d)
        return bm.GaussianMixture(
            weights, means, Covariance(values if row.storage == "full" else values[:, 0, 0], row.name)
        )

    return prior


def numpyro_(double):
    def prepare(k, d):
        import numpyro

        numpyro.set_host_device_count(CHAINS)
        numpyro.enable_x64(double)
        import jax
        import sklearn.cluster  # noqa: F401
        from numpyro.infer import MCMC, NUTS, init_to_value

        def call(x, seed):
            y, center, scale, start = at_kmeans(x, k)
            start = jax.tree.map(jax.numpy.asarray, values_at(start, d))
            kernel = NUTS(hand_written, init_strategy=init_to_value(values=start))
            sampler = MCMC(
                kernel,
                num_warmup=WARMUP,
                num_samples=DRAWS,
                num_chains=CHAINS,
                chain_method="parallel",
                progress_bar=False,
            )
            sampler.run(jax.random.key(seed), y, k, extra_fields=("num_steps",))
            sites = sampler.get_samples(group_by_chain=True)
            steps = np.asarray(sampler.get_extra_fields(group_by_chain=True)["num_steps"])
            return from_sites(sites, center, scale, steps)

        return call, {"numpyro": numpyro.__version__, "jax": jax.__version__}

    return prepare


def blackjax_(k, d):
    import blackjax
    import jax
    import numpyro
    import sklearn.cluster  # noqa: F401
    from numpyro.infer.util import constrain_fn, potential_energy, unconstrain_fn

    jax.config.update("jax_enable_x64", True)

    @jax.jit
    def sample(key, x, start):
        def log_density(point):
            return -potential_energy(hand_written, (x, k), {}, point)

        def chain(key, point):
            tune, draw = jax.random.split(key)
            tuned, _ = blackjax.window_adaptation(blackjax.nuts, log_density).run(tune, point, WARMUP)
            kernel = blackjax.nuts(log_density, **tuned.parameters)

            def step(state, key):
                state, info = kernel.step(key, state)
                return state, (state.position, info.num_integration_steps)

            return jax.lax.scan(step, tuned.state, jax.random.split(draw, DRAWS))[1]

        point = unconstrain_fn(hand_written, (x, k), {}, start)
        points, steps = jax.vmap(chain, in_axes=(0, None))(jax.random.split(key, CHAINS), point)
        constrain = jax.vmap(jax.vmap(lambda point: constrain_fn(hand_written, (x, k), {}, point)))
        return constrain(points), steps

    def call(x, seed):
        y, center, scale, start = at_kmeans(x, k)
        sites, steps = sample(jax.random.key(seed), y, values_at(start, d))
        return from_sites(sites, center, scale, np.asarray(steps))

    return call, {"blackjax": blackjax.__version__, "numpyro": numpyro.__version__, "jax": jax.__version__}


def pymc_(k, d):
    import logging
    import warnings

    import pymc as pm
    import sklearn.cluster  # noqa: F401

    logging.getLogger("pymc").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    def call(x, seed):
        y, center, scale, (weights, means, within) = at_kmeans(x, k)
        with pm.Model():
            chances = pm.Dirichlet("proportions", np.ones(k), initval=weights)
            if d == 1:
                ordered = pm.distributions.transforms.ordered
                mu = pm.Normal("mu", 0, 2, shape=k, transform=ordered, initval=means[:, 0])
                sigma = pm.HalfNormal("sigma", 1, shape=k, initval=within[:, 0])
                pm.NormalMixture("x", w=chances, mu=mu, sigma=sigma, observed=y[:, 0])
            else:
                mu = pm.Normal("mu", 0, 2, shape=(k, d), initval=means)
                laws = []
                for j in range(k):
                    root, _, _ = pm.LKJCholeskyCov(
                        f"factor{j}", n=d, eta=2, sd_dist=pm.HalfNormal.dist(1, shape=d)
                    )
                    pm.Deterministic(f"covariance{j}", root @ root.T)
                    laws.append(pm.MvNormal.dist(mu=mu[j], chol=root))
                pm.Mixture("x", w=chances, comp_dists=laws, observed=y)
            tree = pm.sample(
                DRAWS, tune=WARMUP, chains=CHAINS, cores=2, random_seed=seed, progressbar=False,
                compute_convergence_checks=False,
            )  # fmt: skip
        drawn = tree["posterior"]
        mu = drawn["mu"].values
        if d == 1:
            mu, covariances = mu[..., None], drawn["sigma"].values[..., None, None] ** 2
        else:
            covariances = np.stack([drawn[f"covariance{j}"].values for j in range(k)], axis=2)
        steps = tree["sample_stats"]["n_steps"].values.astype(int)
        return to_data(drawn["proportions"].values, mu, covariances, center, scale, steps)

    return call, {"pymc": pm.__version__}


CONTENDERS = {
    "nuts": bayesmix("nuts"),
    "gibbs": bayesmix("gibbs"),
    "gibbs_unthinned": bayesmix("gibbs", thinning=1),
    "nuts_unthinned": bayesmix("nuts", thinning=1),
    "nuts_program": bayesmix("nuts", program),
    "numpyro": numpyro_(double=True),
    "numpyro_single": numpyro_(double=False),
    "blackjax": blackjax_,
    "pymc": pymc_,
}


def log_likelihoods(x, weights, means, covariances):
    """Σ_n log p(x_n) of each draw, by the same lines for every contender."""
    factors = np.linalg.inv(np.linalg.cholesky(covariances))
    constants = np.log(weights) + np.log(np.diagonal(factors, axis1=-2, axis2=-1)).sum(axis=-1)
    out = np.empty(weights.shape[:2])
    for at in np.ndindex(out.shape):
        y = factors[at] @ (x.T - means[at][:, :, None])
        logits = constants[at][:, None] - (y * y).sum(axis=1) / 2
        top = logits.max(axis=0)
        out[at] = (top + np.log(np.exp(logits - top).sum(axis=0))).sum()
    return out - x.size / 2 * math.log(2 * math.pi)


def judged(x, weights, means, covariances, gradients):
    """The smallest bulk effective sample size, and what a reader needs to believe it."""
    import arviz as az

    order = np.argsort(means[..., 0], axis=-1)
    weights = np.take_along_axis(weights, order, axis=-1)
    means = np.take_along_axis(means, order[..., None], axis=-2)
    covariances = np.take_along_axis(covariances, order[..., None, None], axis=-3)
    k, d = means.shape[-2:]
    quantities = {f"weights[{j}]": weights[..., j] for j in range(k)}
    quantities |= {f"means[{j},{i}]": means[..., j, i] for j in range(k) for i in range(d)}
    quantities["log_likelihood"] = log_likelihoods(x, weights, means, covariances)
    sizes = {name: float(az.ess(values, method="bulk")) for name, values in quantities.items()}
    least = min(sizes, key=sizes.__getitem__)
    row = {
        "min_ess": round(sizes[least]),
        "of": least,
        "max_rhat": round(max(float(az.rhat(values)) for values in quantities.values()), 3),
        "mean": {name: float(values.mean()) for name, values in quantities.items()},
        "sd": {name: float(values.std()) for name, values in quantities.items()},
    }
    if gradients is not None:
        row["gradients_a_draw"] = round(float(gradients.mean()), 2)
        row["ess_a_gradient"] = round(sizes[least] / float(gradients.sum()), 4)
    return row


def work(contender, path, k):
    """In a process of its own: a cold and a warm call, a JSON line each as soon as it is known."""
    x = np.load(path)
    rng = np.random.default_rng(1)
    clock = time.perf_counter()
    call, versions = CONTENDERS[contender](k, x.shape[1])
    imported = time.perf_counter() - clock
    programs = []
    if "jax" in sys.modules:
        import jax

        jax.monitoring.register_event_duration_secs_listener(
            lambda name, seconds, **_: (
                programs.append(seconds) if name.endswith("backend_compile_duration") else None
            )
        )
    for turn, name in enumerate(("cold", "warm")):
        rows = x if turn == 0 else x[rng.integers(0, len(x), len(x))]
        programs.clear()
        clock = time.perf_counter()
        drawn = call(rows, turn)
        seconds = time.perf_counter() - clock
        row = {"turn": name, "seconds": round(seconds, 3), "programs": len(programs)}
        print(json.dumps(row | judged(rows, *drawn)), flush=True)
    print(json.dumps({"turn": "facts", "import_s": round(imported, 2), "versions": versions}), flush=True)


def run(contender, path, k, limit):
    """The rows of a process by turn; without those that the time limit cut off."""
    command = [sys.executable, __file__, "--work", contender, path, str(k)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        try:
            text, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
        else:
            if process.returncode:
                log.seek(0)
                said = [
                    line for line in log.read().splitlines() if re.match(r"[\w.]*(Error|Exception)\b", line)
                ]
                print(f"{contender} is left out: {said[-1] if said else process.returncode}", file=sys.stderr)
                return None
    return {row.pop("turn"): row for row in map(json.loads, filter(None, text.splitlines()))}


def summed(runs, limit):
    """Medians over the repeats; where the time limit struck in any of them, a bound."""
    out = {}
    for turn in ("cold", "warm"):
        rows = [run[turn] for run in runs if turn in run]
        if len(rows) < len(runs):
            draws = CHAINS * DRAWS
            out |= {f"{turn}_s": None, f"{turn}_ess_per_s_below": round(draws * math.log10(draws) / limit, 1)}
            continue
        middle = statistics.median
        out |= {
            f"{turn}_s": round(middle(row["seconds"] for row in rows), 3),
            f"{turn}_min_ess": round(middle(row["min_ess"] for row in rows)),
            f"{turn}_ess_per_s": round(middle(row["min_ess"] / row["seconds"] for row in rows), 1),
            f"{turn}_of": rows[0]["of"],
            f"{turn}_max_rhat": max(row["max_rhat"] for row in rows),
            f"{turn}_programs": rows[0]["programs"],
        }
        for name in ("gradients_a_draw", "ess_a_gradient"):
            if name in rows[0]:
                out[f"{turn}_{name}"] = middle(row[name] for row in rows)
    return out


def compare(name, contenders, repeats, limit):
    x, k = DATA[name]()
    runs = {contender: [] for contender in contenders}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / f"{name}.npy")
        np.save(path, x)
        for _ in range(repeats):
            for contender in list(runs):
                found = run(contender, path, k, limit)
                if found is None:
                    del runs[contender]
                else:
                    runs[contender].append(found)
    rows = {contender: summed(found, limit) for contender, found in runs.items()}
    for contender, row in rows.items():
        peer = rows.get(BASELINE, {})
        for turn in ("cold", "warm"):
            if f"{turn}_ess_per_s" in row:
                if f"{turn}_ess_per_s" in peer:
                    ratio = row[f"{turn}_ess_per_s"] / peer[f"{turn}_ess_per_s"]
                    row[f"{turn}_ratio"] = float(f"{ratio:.3g}")
                elif f"{turn}_ess_per_s_below" in peer:
                    ratio = row[f"{turn}_ess_per_s"] / peer[f"{turn}_ess_per_s_below"]
                    row[f"{turn}_ratio_at_least"] = float(f"{ratio:.3g}")
        first = runs[contender][0]
        row |= first.get("facts", {})
        if "cold" in first:
            row |= {"mean": first["cold"]["mean"], "sd": first["cold"]["sd"]}
    return {"n": len(x), "d": x.shape[1], "k": k}, rows


def show(name, size, rows):
    print(f"\n{name}: n, d, k = {size['n']}, {size['d']}, {size['k']}")
    print(f"{'':15} {'import s':>8} " + " ".join(
        f"{turn + ' s':>8} {'min ESS':>8} {'ESS/s':>8} {'ratio':>7} {'R-hat':>6} {'programs':>8}" for turn in ("cold", "warm")
    ))  # fmt: skip
    for contender, row in rows.items():
        cells = [f"{row.get('import_s', math.nan):8.2f}"]
        for turn in ("cold", "warm"):
            bound, rate = row.get(f"{turn}_ratio_at_least"), row.get(f"{turn}_ess_per_s")
            ratio = f"> {bound}" if bound else str(row.get(f"{turn}_ratio", ""))
            cells += [
                f"{row[f'{turn}_s'] or math.nan:8.2f}",
                f"{row.get(f'{turn}_min_ess', ''):>8}",
                f"{rate:8.1f}" if rate else f"{'< ' + str(row[f'{turn}_ess_per_s_below']):>8}",
                f"{ratio:>7}",
                f"{row.get(f'{turn}_max_rhat', ''):>6}",
                f"{row.get(f'{turn}_programs', ''):>8}",
            ]
        print(f"{contender:15} " + " ".join(cells))
    print("posterior means (sd), clusters in the order of the first coordinate:")
    known = {contender: row for contender, row in rows.items() if "mean" in row}
    for quantity in next(iter(known.values()), {"mean": {}})["mean"]:
        cells = [f"{row['mean'][quantity]:9.3f} ({row['sd'][quantity]:.3f})" for row in known.values()]
        print(f"  {quantity:15}" + " ".join(f"{cell:>19}" for cell in cells))
    print(f"  {'':15}" + " ".join(f"{contender:>19}" for contender in known), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=1200, help="seconds that a process may take")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "posterior.jsonl"))
    parser.add_argument("--work", nargs=3, metavar=("CONTENDER", "PATH", "K"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        contender, path, k = options.work
        work(contender, path, int(k))
        return
    stamp = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": platform.processor() or platform.machine(),
             "cores": len(os.sched_getaffinity(0)), "repeats": options.repeats, "limit_s": options.limit}  # fmt: skip
    for name in options.data:
        size, rows = compare(name, options.only, options.repeats, options.limit)
        show(name, size, rows)
        with open(options.out, "a", encoding="utf-8") as out:
            for contender, row in rows.items():
                facts = {"benchmark": "posterior", "data": name, **size, "contender": contender}
                out.write(json.dumps(facts | row | stamp) + "\n")


if __name__ == "__main__":
    main()
