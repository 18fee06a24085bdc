"""bayesmix beside scikit-learn, gmmx, faiss and pomegranate, and beside what the machine can do.

    uv run --group benchmarks python benchmarks/suite.py [--tasks iteration fit ...] [--sizes 272,2,2 ...] [--repeats 5]

    iteration   one EM step, for four covariances, in float64 and float32
    fit         a whole fit from the same start to the same log-likelihood: bayesmix's default call, against as many
                of scikit-learn's steps as EM needs to come within 1e-3 nats of it
    lloyd       one step of k-means, float32: of the third to the thirty-second from the first k rows
    kmeans      a whole call from there until no label changes
    restarts    ten starts, defaults of both, with the log-likelihoods, or inertias, that they reach
    evaluate    log density of a million points;  simulate: as many drawn
    cold        a process: import, first fit, second fit, fit of another n (272 x 2, k = 2, full)
    memory      of a fit of 1e6 x 4 and of 4e6 x 10, beyond what the process had with its data loaded
    scaling     one EM step, full, as n, d and k grow

Each contender is a process of its own (`contenders.py`); for each row they take turns, `--repeats` times, with their
threads pinned to the cores, and medians count. Rows are written as JSON lines, and drawn with --figure.

A row's `limit` is the least time in which this machine, by rates measured in the same run, does the row's products
or reads its data, whichever is longer: `of_limit` is that over our time. Per point and cluster an EM step takes
p products for the logits and p for the moments, two flops each, with p = 1 + d + d (d + 1) / 2 features for full
covariances, 1 + 2 d for diagonal, 2 + d for spherical, 1 + d for tied ones and k-means; x is read once. Large k-means may
be below it, since it looks at some of the points only.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from shared import CORES, versions, write  # isort: skip: before NumPy

import numpy as np

HERE = Path(__file__).parent
SIZES = ("272,2,2", "10000,2,5", "100000,10,10", "1000000,4,8", "100000,32,16", "50000,64,32")
KINDS = ("full", "tied", "diag", "spherical")
LLOYD = ("100000,10,10", "1000000,16,64", "200000,64,256")
MEMORY = ("1000000,4,8", "float64"), ("4000000,10,8", "float64"), ("4000000,10,8", "float32")
SCALING = {
    "n": [(n, 4, 8) for n in (1_000, 10_000, 100_000, 1_000_000)],
    "d": [(20_000, d, 8) for d in (2, 4, 8, 16, 32, 64)],
    "k": [(20_000, 8, k) for k in (2, 4, 8, 16, 32, 64)],
}
COLD = {
    "bayesmix": """
import bayesmix as bm
{cache}
def fit(x): return bm.fit(bm.MixtureModel(2), x, n_starts=1).log_likelihood
""",
    "sklearn": """
from sklearn.mixture import GaussianMixture
def fit(x): return GaussianMixture(2).fit(x).lower_bound_
""",
}
COLD_END = """
import json, time
turns = {"import": time.perf_counter() - begin}
rng = np.random.default_rng(0)
x = np.concatenate([rng.normal(size=(172, 2)), rng.normal(size=(100, 2)) + 4])
for name, rows in (("first_fit", x), ("second_fit", x[::-1]), ("another_n", np.concatenate([x, x + 0.1])[:300])):
    clock = time.perf_counter()
    fit(rows)
    turns[name] = time.perf_counter() - clock
turns["process"] = time.perf_counter() - begin
print(json.dumps(turns))
"""


class Contender:
    """A process that answers tasks."""

    def __init__(self, name):
        command = [sys.executable, str(HERE / "contenders.py"), name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, task):
        with contextlib.suppress(BrokenPipeError):  # then nothing is answered either
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"contender ended with {self.process.wait()} at {task}")
        return json.loads(line)

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def machine():
    """Flops a second of a product of square matrices, and bytes a second that memory gives all cores together."""
    best = {}
    for name in ("float64", "float32"):
        a = np.random.default_rng(0).normal(size=(1500, 1500)).astype(name)
        best[name] = 2 * 1500**3 / min(_seconds(lambda: a @ a) for _ in range(7))  # noqa: B023
    arrays = [np.ones(2**25) for _ in range(int(CORES))]

    def read():
        threads = [threading.Thread(target=np.sum, args=(a,)) for a in arrays]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    best["bytes"] = sum(a.nbytes for a in arrays) / min(_seconds(read) for _ in range(7))
    print("limits: " + ", ".join(f"{name} {rate / 1e9:.1f} G/s" for name, rate in best.items()))
    return best


def _seconds(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def limit(task, rates):
    n, d, k = task["n"], task["d"], task["k"]
    features = {"full": 1 + d + d * (d + 1) // 2, "diag": 1 + 2 * d, "spherical": 2 + d}
    p = features.get(task["kind"], 1 + d)
    size = np.dtype(task["dtype"]).itemsize
    return max(4 * n * k * p / rates[task["dtype"]], n * d * size / rates["bytes"])


def measure(contenders, task, repeats):
    """Answers of each contender in turn, the first of which is discarded; those that take no such task are left out."""
    answers = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name in list(answers):
            answer = contenders[name](task)
            if not answer:
                del answers[name]
            elif turn:
                answers[name].append(answer)
    return {
        name: {field: statistics.median(each[field] for each in given) for field in given[0] if given[0][field] is not None}
        for name, given in answers.items()
    }  # fmt: skip


def measure_able(contenders, task, repeats):
    """`measure` of the contenders that can do the task; one whose memory is short, or its numbers, is left out."""
    while "bayesmix" in contenders:
        try:
            return measure(contenders, task, repeats)
        except RuntimeError as error:
            print(error, flush=True)
            for name in [name for name in contenders if contenders[name].process.poll() is not None]:
                contenders.pop(name).close()
    return {}


def row_of(task, answers, rates):
    row = dict(task)
    for name, answer in answers.items():
        row |= {f"{name}_{field}": float(f"{value:.6g}") for field, value in answer.items()}
    for name in set(answers) - {"bayesmix"}:
        for field in ("seconds", "megabytes", "process"):
            if field in answers[name]:
                row[f"{name}_ratio"] = round(answers[name][field] / max(answers["bayesmix"][field], 1e-9), 2)
    if rates is not None:
        row["of_limit"] = round(limit(task, rates) / answers["bayesmix"]["seconds"], 3)
    return row


def tasks_of(options):
    """Every row's contenders and task, in order."""

    def sized(task, size, **more):
        n, d, k = map(int, size.split(","))
        return {
            "task": task,
            "n": n,
            "d": d,
            "k": k,
            "kind": "full",
            "dtype": "float64",
            "cores": CORES,
        } | more

    each = [(s, kind, dtype) for dtype in options.dtypes for s in options.sizes for kind in options.kinds]
    for size, kind, dtype in each:
        peers = ("bayesmix", "sklearn", "gmmx", "pomegranate")
        yield "iteration", peers, sized("iteration", size, kind=kind, dtype=dtype)
    for size, kind, dtype in each:
        yield "fit", ("bayesmix", "sklearn"), sized("fit", size, kind=kind, dtype=dtype)
    for size in LLOYD:
        yield (
            "lloyd",
            ("bayesmix", "sklearn", "elkan", "faiss"),
            sized("lloyd", size, kind="k-means", dtype="float32"),
        )
    for size in LLOYD:
        yield (
            "kmeans",
            ("bayesmix", "sklearn", "elkan", "faiss"),
            sized("kmeans", size, kind="k-means", dtype="float32"),
        )
    for size in SIZES[:3]:
        yield "restarts", ("bayesmix", "sklearn"), sized("restarts", size)
    for size in LLOYD[:2]:
        more = {"kind": "k-means", "dtype": "float32"}
        yield "restarts", ("bayesmix", "sklearn"), sized("restarts", size, **more)
    for name in ("evaluate", "simulate"):
        yield name, ("bayesmix", "sklearn"), sized(name, "1000000,4,8")
    for size, dtype in MEMORY:
        yield "memory", ("bayesmix", "sklearn"), sized("memory", size, dtype=dtype)
    for along, sizes in SCALING.items():
        for size in sizes:
            task = sized("iteration", ",".join(map(str, size)))
            yield "scaling", ("bayesmix", "sklearn"), task | {"along": along}


def run(options, rates):
    """A row for each task."""
    for kind, names, task in tasks_of(options):
        if kind not in options.tasks:
            continue
        if kind == "memory":  # each time anew: a process remembers its peak
            answers = {name: [] for name in names}
            for _ in range(options.repeats):
                for name in names:
                    contender = Contender(name)
                    answers[name].append(contender(task)["megabytes"])
                    contender.close()
            found = {name: {"megabytes": statistics.median(values)} for name, values in answers.items()}
            yield kind, row_of(task, found, None)
            continue
        contenders = {name: Contender(name) for name in names}
        try:
            repeats = options.repeats
            if kind == "fit":
                task = task | {"most": 3000 if task["n"] * task["k"] < 2e6 else 300}
                steps = contenders["bayesmix"](task).get("plain_steps")
                if steps is None:
                    print(f"EM did not come so far in {task['most']} steps: {task}")
                    continue
                task = task | {"plain_steps": int(steps)}
            if kind == "kmeans":
                task = task | {"steps": int(contenders["bayesmix"](task)["steps"])}
            found = measure_able(contenders, task, repeats)
        finally:
            for contender in contenders.values():
                contender.close()
        if found:
            yield kind, row_of(task, found, rates if task["task"] in ("iteration", "lloyd") else None)
    if "cold" in options.tasks:
        yield "cold", cold(options.repeats)


def cold(repeats):
    """Whole processes, in turn; with the compilation cache after one process has filled it."""
    with tempfile.TemporaryDirectory() as folder:
        cache = f"bm.enable_compilation_cache({folder!r})"
        scripts = {name: COLD[name].format(cache="") for name in COLD}
        scripts["bayesmix_cached"] = COLD["bayesmix"].format(cache=cache)
        turns = {name: [] for name in scripts}
        for turn in range(repeats + 1):
            order = list(scripts)
            for name in order[turn % 3 :] + order[: turn % 3]:  # what ran before leaves the machine as it is
                script = scripts[name]
                text = "import time; begin = time.perf_counter()\nimport numpy as np\n" + script + COLD_END
                done = subprocess.run(
                    [sys.executable, "-c", text], capture_output=True, text=True, check=True
                )
                if turn:
                    turns[name].append(json.loads(done.stdout))
    found = {
        name: {k: statistics.median(t[k] for t in each) for k in each[0]} for name, each in turns.items()
    }
    task = {"task": "cold", "n": 272, "d": 2, "k": 2, "kind": "full", "dtype": "float64"}
    return row_of(task, found, None)


def show(kind, row):
    what = f"{row['n']:>8} {row['d']:>3} {row['k']:>4} {row['kind']:>9} {row['dtype']}"
    unit, factor = ("ms", 1e3) if "bayesmix_seconds" in row else ("MB", 1)
    field = {"ms": "seconds", "MB": "megabytes"}[unit]
    if kind == "cold":
        unit, factor, field = "s", 1, "process"
    values = [
        f"{key.removesuffix('_' + field)} {row[key] * factor:.4g}" for key in row if key.endswith("_" + field)
    ]
    ratios = [f"x{row[key]} {key.removesuffix('_ratio')}" for key in row if key.endswith("_ratio")]
    end = f"  {row['of_limit']:.0%} of the limit" if "of_limit" in row else ""
    print(f"{kind:>9} {what}  {unit}: {', '.join(values)}  {', '.join(ratios)}{end}", flush=True)


def draw(rows, path):
    """How many times faster than scikit-learn a step is, and how a step's time grows."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    from bayesmix.plots import COLORS, MARKERS

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    steps = [row for kind, row in rows if kind == "iteration" and row["dtype"] == "float64"]
    sizes = list(dict.fromkeys((row["n"], row["d"], row["k"]) for row in steps))
    ax = axes[0, 0]
    for i, kind in enumerate(KINDS):
        mine = [
            (sizes.index((r["n"], r["d"], r["k"])), r["sklearn_ratio"]) for r in steps if r["kind"] == kind
        ]
        if mine:
            ax.plot(*zip(*mine), MARKERS[i], color=COLORS[i], label=kind, ms=8)
    ax.set(yscale="log", ylabel="times faster than scikit-learn", title="one EM step, float64")
    ax.set_xticks(
        range(len(sizes)),
        [f"n={n:.0e}".replace("e+0", "e") + f"\nd={d} k={k}" for n, d, k in sizes],
        fontsize=8,
    )
    ax.axhline(1, color="0.6", lw=1)
    ax.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 0.08))
    for ax, (along, values) in zip(axes.flat[1:], SCALING.items()):
        mine = [row for kind, row in rows if kind == "scaling" and row["along"] == along]
        for i, name in enumerate(("bayesmix", "sklearn")):
            if mine:
                ax.loglog([r[along] for r in mine], [r[f"{name}_seconds"] * 1e3 for r in mine], MARKERS[i] + "-",
                          color=COLORS[i], label={"sklearn": "scikit-learn"}.get(name, name))  # fmt: skip
        ticks = [value["ndk".index(along)] for value in values]
        ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        ax.minorticks_off()
        fixed = dict(zip("ndk", values[0]))
        fixed.pop(along)
        ax.set(
            xlabel=along,
            ylabel="ms a step",
            title="full, " + ", ".join(f"{k} = {v:,}" for k, v in fixed.items()),
        )
        ax.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main():
    every = (
        "iteration", "fit", "lloyd", "kmeans", "restarts", "evaluate", "simulate", "cold", "memory", "scaling",
    )  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=every, choices=every)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="N,D,K")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--dtypes", nargs="+", default=("float64", "float32"), choices=("float64", "float32"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="write the rows to this file, a JSON object a line")
    parser.add_argument("--figure", help="draw steps and scaling to this file")
    options = parser.parse_args()
    stamp = versions("scikit-learn")
    rates = machine()
    stamp |= {f"{name}_per_second": float(f"{rate:.4g}") for name, rate in rates.items()}
    rows = []
    for kind, row in run(options, rates):
        show(kind, row)
        rows.append((kind, row))
        if options.json:  # after each row, so that a run that is cut short leaves what it measured
            write([{"benchmark": kind} | row | stamp for kind, row in rows], options.json)
    if options.figure:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
