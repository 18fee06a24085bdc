"""One contender of `suite.py`, in a process of its own: reads tasks from standard input, a JSON object a line, and
answers each with what it measured once.

    python benchmarks/contenders.py bayesmix

A task is set up when it first comes (data, start, compilation), and only measured when it comes again. "iteration" is
the difference between a run of many steps and a run of few from the same start, divided by the steps between, so that
what is done once a call does not count; everything else is whole calls.
"""

import json
import math
import sys
import time
import warnings
from functools import lru_cache

from shared import peak_memory  # isort: skip: before NumPy

import numpy as np

WORDS = {"full": "VVV", "tied": "EEE", "diag": "VVI", "spherical": "VII"}


@lru_cache(maxsize=1)  # tasks of one size follow each other
def sample(n, d, k, dtype):
    """Overlapping clusters with covariances of their own, and starting means near the true ones."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(k, d)) * 3
    factors = rng.normal(size=(k, d, d)) * 0.3 + np.eye(d)
    z = rng.integers(0, k, n)
    x = np.empty((n, d), dtype)
    for j in range(k):
        x[z == j] = rng.normal(size=((z == j).sum(), d)) @ factors[j] + means[j]
    return x, (means + 0.3 * rng.normal(size=means.shape)).astype(dtype)


def data_of(task):
    return sample(task["n"], task["d"], task["k"], np.dtype(task["dtype"]))


def small_peak(task):
    """Clusters and starting means, made a block at a time, so that a process never had more memory than the data's."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(task["k"], task["d"])) * 3
    x = np.empty((task["n"], task["d"]), task["dtype"])
    for rows in np.array_split(x, 1 + len(x) // 10_000):
        rows[:] = means[rng.integers(0, len(means), len(rows))] + rng.normal(size=rows.shape)
    return x, means.astype(x.dtype)


def covariances(x, k, kind):
    """The covariance of all data for every cluster, as scikit-learn shapes it."""
    total = np.cov(x[:100_000].T.astype(np.float64)).reshape(x.shape[1], -1)
    return {
        "full": np.tile(total, (k, 1, 1)),
        "tied": total,
        "diag": np.tile(np.diag(total), (k, 1)),
        "spherical": np.full(k, np.diag(total).mean()),
    }[kind]


def clock(call):
    begin = time.perf_counter()
    out = call()
    return time.perf_counter() - begin, out


def per_step(run, seconds=0.5, most=400):
    """A measurement of one step of `run(steps)`, with enough steps for so many seconds."""
    few = 2
    run(few)
    guess = max(1e-6, clock(lambda: run(2 * few))[0] / (2 * few))
    return per_step_of(run, few, few + max(2, min(most, int(seconds / guess))))


def per_step_of(run, few=2, many=32):
    """Of the steps between; those of k-means differ, since more labels change at first, so all take the same ones."""
    run(few)
    run(many)

    def measure():
        run(few)  # another contender has had the processor's caches
        return {"seconds": (clock(lambda: run(many))[0] - clock(lambda: run(few))[0]) / (many - few)}

    return measure


class Bayesmix:
    def __init__(self):
        import bayesmix

        self.bm = bayesmix

    def start(self, x, means, kind):
        k = len(means)
        values = covariances(x, k, kind)
        return self.bm.GaussianMixture.of(
            np.full(k, 1 / k),
            means.astype(float),
            values[None] if kind == "tied" else values,
            covariance=kind,
        )

    def _loop(self, x, start, structure, options):
        """`run(steps)` of the compiled loop that `fit` and `kmeans` drive."""
        from bayesmix.drive import begin, run
        from bayesmix.given import given_start
        from bayesmix.problem import prepare

        problem = prepare(start.n_components, structure, x, None, 0.0)
        states = begin([given_start(start, problem)], options)
        return lambda steps: run(states, np.array([steps]), problem.observations, problem.rules, options)

    def iteration(self, task):
        from bayesmix.loop import Options

        x, means = data_of(task)
        return per_step(self._loop(x, self.start(x, means, task["kind"]), WORDS[task["kind"]], Options()))

    def lloyd(self, task):
        from bayesmix.loop import Options

        x, _ = data_of(task)
        k, d = task["k"], task["d"]
        sphere = self.bm.GaussianMixture.of(
            np.full(k, 1 / k), x[:k].astype(float), np.ones(1), covariance="EII"
        )
        options = Options("hard", ("covariance", "weights"))
        return per_step_of(self._loop(x, sphere, "EII" if d > 1 else "E", options))

    def kmeans(self, task):
        x, _ = data_of(task)
        call = lambda: self.bm.kmeans(x, task["k"], init=x[: task["k"]])  # noqa: E731
        call()

        def measure():
            seconds, fit = clock(call)
            return {"seconds": seconds, "inertia": float(fit.inertia), "steps": fit.n_steps}

        return measure

    def fit(self, task):
        """The default call, and how many of EM's own steps have come as far as it."""
        x, means = data_of(task)
        model, start = self.bm.MixtureModel(task["k"], task["kind"]), self.start(x, means, task["kind"])

        def measure():
            seconds, fit = clock(lambda: self.bm.fit(model, x, init=start))
            return {"seconds": seconds, "log_likelihood": float(fit.log_likelihood), "steps": fit.n_steps}

        def plain():
            fit = self.bm.fit(model, x, init=start, accelerate=False, max_steps=task["most"])
            least = measure()["log_likelihood"] - max(
                1e-3, 1e-5 * abs(float(fit.log_likelihood)) * (x.dtype == np.float32)
            )
            reached = np.flatnonzero(fit.objective >= least)
            return {"plain_steps": int(reached[0]) + 1 if reached.size else None}

        said = plain()
        return lambda: measure() | said

    def restarts(self, task):
        x, _ = data_of(task)
        if task["kind"] == "k-means":
            call = lambda: self.bm.kmeans(x, task["k"], n_starts=10)  # noqa: E731
            call()
            return lambda: _with(*clock(call), "inertia", lambda fit: fit.inertia)
        model = self.bm.MixtureModel(task["k"], task["kind"])
        call = lambda: self.bm.fit(model, x, n_starts=10)  # noqa: E731
        call()
        return lambda: _with(*clock(call), "log_likelihood", lambda fit: fit.log_likelihood)

    def evaluate(self, task):
        x, means = data_of(task)
        mixture = self.start(x, means, task["kind"])
        return _whole(lambda: mixture.log_density(x))

    def simulate(self, task):
        x, means = data_of(task)
        mixture = self.start(x, means, task["kind"])
        return _whole(lambda: mixture.simulate(len(x), key=0))

    def memory(self, task):
        x, means = small_peak(task)
        model, start = self.bm.MixtureModel(task["k"], task["kind"]), self.start(x, means, task["kind"])
        return lambda: _peak(lambda: self.bm.fit(model, x, init=start, max_steps=10))


class Sklearn:
    def __init__(self):
        from sklearn.exceptions import ConvergenceWarning

        warnings.simplefilter("ignore", ConvergenceWarning)

    def start(self, x, means, kind, **options):
        from sklearn.mixture import GaussianMixture

        k, values = len(means), covariances(x, len(means), kind)
        return GaussianMixture(
            k,
            covariance_type=kind,
            reg_covar=0,
            weights_init=np.full(k, 1 / k, x.dtype),
            means_init=means,
            precisions_init=(np.linalg.inv(values) if kind in ("full", "tied") else 1 / values).astype(
                x.dtype
            ),
            **options,
        )

    def iteration(self, task):
        x, means = data_of(task)
        return per_step(
            lambda steps: self.start(x, means, task["kind"], tol=0, max_iter=steps).fit(x), most=50
        )

    def lloyd(self, task, algorithm="lloyd"):
        from sklearn.cluster import KMeans

        x, _ = data_of(task)

        def run(steps):
            model = KMeans(
                task["k"], init=x[: task["k"]], n_init=1, tol=0, max_iter=steps, algorithm=algorithm
            )
            model.fit(x)

        return per_step_of(run)

    def kmeans(self, task, algorithm="lloyd"):
        from sklearn.cluster import KMeans

        x, _ = data_of(task)
        start = x[: task["k"]]
        model = KMeans(task["k"], init=start, n_init=1, tol=0, max_iter=1000, algorithm=algorithm)
        model.fit(x)

        def measure():
            seconds, _ = clock(lambda: model.fit(x))
            return {"seconds": seconds, "inertia": float(model.inertia_), "steps": model.n_iter_}

        return measure

    def fit(self, task):
        """As many of EM's own steps as that log-likelihood takes."""
        x, means = data_of(task)

        def measure():
            model = self.start(x, means, task["kind"], tol=0, max_iter=task["plain_steps"])
            seconds, model = clock(lambda: model.fit(x))
            return {"seconds": seconds, "log_likelihood": float(model.score(x)) * len(x)}

        return measure

    def restarts(self, task):
        from sklearn.cluster import KMeans
        from sklearn.mixture import GaussianMixture

        x, _ = data_of(task)
        if task["kind"] == "k-means":
            model = KMeans(task["k"], n_init=10, random_state=0)
            return lambda: _with(*clock(lambda: model.fit(x)), "inertia", lambda fit: fit.inertia_)
        model = GaussianMixture(task["k"], covariance_type=task["kind"], n_init=10, random_state=0)
        return lambda: _with(
            *clock(lambda: model.fit(x)), "log_likelihood", lambda fit: fit.score(x) * len(x)
        )

    def _fitted(self, task):
        x, means = data_of(task)
        return x, self.start(x, means, task["kind"], max_iter=1).fit(x)

    def evaluate(self, task):
        x, model = self._fitted(task)
        return _whole(lambda: model.score_samples(x))

    def simulate(self, task):
        x, model = self._fitted(task)
        return _whole(lambda: model.sample(len(x)))

    def memory(self, task):
        x, means = small_peak(task)
        model = self.start(x, means, task["kind"], tol=0, max_iter=10)
        return lambda: _peak(lambda: model.fit(x))


class Elkan(Sklearn):
    def lloyd(self, task):
        return super().lloyd(task, "elkan")

    def kmeans(self, task):
        return super().kmeans(task, "elkan")


class Faiss:
    def _run(self, task):
        """x, and steps of it from the first k rows."""
        import faiss

        faiss.omp_set_num_threads(int(task["cores"]))
        x, _ = data_of(task)
        k, d = task["k"], task["d"]

        def run(steps):
            model = faiss.Kmeans(d, k, niter=steps, max_points_per_centroid=len(x), min_points_per_centroid=1)
            model.train(x, init_centroids=x[:k])
            return model

        return x, run

    def lloyd(self, task):
        return per_step_of(self._run(task)[1])

    def kmeans(self, task):
        """As many steps as the others take until they are at rest, which it does not look for, and labels."""
        x, run = self._run(task)

        def call():
            model = run(task["steps"])
            return model.index.search(x, 1)[0].sum()

        call()

        def measure():
            seconds, inertia = clock(call)
            return {"seconds": seconds, "inertia": float(inertia), "steps": task["steps"]}

        return measure


class Gmmx:
    """It takes float32 alone, and full and diagonal covariances.

    Its intermediates hold n k d² numbers for full ones: sizes that would not fit are left out.
    """

    def iteration(self, task):
        import jax
        from gmmx import EMFitter, GaussianMixtureModelJax

        if task["kind"] not in ("full", "diag") or task["dtype"] != "float32":
            return None
        size = task["n"] * task["k"] * task["d"] ** (2 if task["kind"] == "full" else 1)
        if size > (2e8 if jax.default_backend() == "cpu" else 4e9):
            return None
        x, means = data_of(task)
        k = task["k"]
        model = GaussianMixtureModelJax.from_squeezed(
            weights=np.full(k, 1 / k, x.dtype),
            means=means,
            covariances=covariances(x, k, task["kind"]).astype(x.dtype),
            covariance_type=task["kind"],
        )
        points = jax.device_put(x)
        return per_step(
            lambda steps: jax.block_until_ready(
                EMFitter(max_iter=steps, tol=0.0, reg_covar=0.0).fit(points, model).log_likelihood
            ),
            most=50,
        )


class Pomegranate:
    """Where it is installed (it brings PyTorch, so no group names it): full and diagonal covariances.

    It holds arrays of n k d numbers, and is left out where they would not fit.
    """

    def iteration(self, task):
        try:
            import torch
            from pomegranate.distributions import Normal
            from pomegranate.gmm import GeneralMixtureModel
        except ImportError:
            return None
        if task["kind"] not in ("full", "diag") or task["n"] * task["k"] * task["d"] > 2e8:
            return None
        torch.set_num_threads(int(task["cores"]))
        x, means = data_of(task)
        points = torch.from_numpy(x)
        values = covariances(x, task["k"], task["kind"]).astype(x.dtype)

        def run(steps):
            parts = [
                Normal(torch.from_numpy(m), torch.from_numpy(v), covariance_type=task["kind"])
                for m, v in zip(means, values)
            ]
            GeneralMixtureModel(parts, max_iter=steps, tol=-math.inf).fit(points)

        return per_step(run, most=50)


class Torch:
    """EM and Lloyd's algorithm as one writes them in PyTorch, on its GPU: the arithmetic is scikit-learn's."""

    def __init__(self):
        import torch

        self.torch = torch

    def iteration(self, task):
        torch, kind = self.torch, task["kind"]
        if kind == "tied":
            return None
        x, means = data_of(task)
        k, d = means.shape
        values = torch.from_numpy(covariances(x, k, kind).astype(x.dtype)).cuda()
        x, first = torch.from_numpy(x).cuda(), torch.from_numpy(means).cuda()

        def log_joint(weights, means, values):
            constant = weights.log() - d / 2 * math.log(2 * math.pi)
            if kind == "full":
                eye = torch.eye(d, dtype=x.dtype, device=x.device)
                factor = torch.linalg.solve_triangular(torch.linalg.cholesky(values), eye, upper=False)
                columns = [((x @ f.T - f @ m) ** 2).sum(1) for f, m in zip(factor, means)]
                constant = constant + factor.diagonal(dim1=1, dim2=2).log().sum(1)
                return constant - torch.stack(columns, 1) / 2
            precision = 1 / (values if kind == "diag" else values[:, None].expand(k, d))
            constant = constant + precision.log().sum(1) / 2 - (means**2 * precision).sum(1) / 2
            return constant + x @ (means * precision).T - (x * x) @ precision.T / 2

        def step(weights, means, values):
            logits = log_joint(weights, means, values)
            r = (logits - logits.logsumexp(1, keepdim=True)).exp()
            count = r.sum(0)
            means = r.T @ x / count[:, None]
            if kind == "full":
                away = [x - m for m in means]
                values = torch.stack([(r[:, j, None] * a).T @ a / count[j] for j, a in enumerate(away)])
            else:
                values = r.T @ (x * x) / count[:, None] - means**2
                values = values.mean(1) if kind == "spherical" else values
            return count / len(x), means, values

        def run(steps):
            state = torch.full((k,), 1 / k, dtype=x.dtype, device=x.device), first, values
            for _ in range(steps):
                state = step(*state)
            torch.cuda.synchronize()

        return per_step(run)

    def lloyd(self, task):
        torch = self.torch
        x, _ = data_of(task)
        x = torch.from_numpy(x).cuda()
        k = task["k"]
        one = torch.ones(len(x), dtype=x.dtype, device=x.device)

        def run(steps):
            means = x[:k].clone()
            for _ in range(steps):
                nearest = ((means**2).sum(1) / 2 - x @ means.T).argmin(1)
                count = torch.zeros(k, dtype=x.dtype, device=x.device).index_add_(0, nearest, one)
                means = torch.zeros_like(means).index_add_(0, nearest, x) / count.clamp(min=1)[:, None]
            torch.cuda.synchronize()

        return per_step(run)


CONTENDERS = {
    "torch": Torch,
    "bayesmix": Bayesmix,
    "sklearn": Sklearn,
    "elkan": Elkan,
    "faiss": Faiss,
    "gmmx": Gmmx,
    "pomegranate": Pomegranate,
}


def _whole(call):
    call()
    return lambda: {"seconds": clock(call)[0]}


def _with(seconds, fit, name, read):
    return {"seconds": seconds, name: float(read(fit))}


def _peak(call):
    """Megabytes of memory that the call adds to what the process had at most before it."""
    before = peak_memory()
    call()
    return {"megabytes": peak_memory() - before}


def main():
    contender = CONTENDERS[sys.argv[1]]()
    key = measure = None
    for line in sys.stdin:
        task = json.loads(line)
        if task != key:
            key, measure = task, None  # what the last task held is free before this one's begins
            measure = getattr(contender, task["task"])(task)
        answer = measure() if measure is not None else {}
        print(
            json.dumps({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in answer.items()})
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
