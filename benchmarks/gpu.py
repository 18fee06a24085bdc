"""One step of EM and of k-means on a GPU, beside a plain PyTorch and gmmx on the same one, and beside what it can do.

    python benchmarks/gpu.py [--sizes 1000000,4,8 ...] [--kinds full diag spherical] [--json FILE]

Contenders and rows are those of `suite.py`; peers that are not installed are left out, and so is gmmx where its
arrays would not fit. The limit is the longer of the row's products at the rate at which the device multiplies large
square matrices of that type (float32 with all of its digits), and reading the data once at the rate at which it
copies them, both measured in the same run.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # contenders hold their data side by side

from shared import CORES, versions, write
from suite import Contender, measure_able, row_of, show

SIZES = ("1000000,4,8", "1000000,10,10", "1000000,32,16", "10000000,4,8", "10000000,10,10")
LLOYD = ("1000000,16,64", "10000000,16,64")
PEERS = {"iteration": ("bayesmix", "torch", "gmmx"), "lloyd": ("bayesmix", "torch")}


def limits(jax):
    """Flops and bytes a second of the device; bytes are those read and those written."""
    import jax.numpy as jnp

    def least(call, *arguments):
        call(*arguments).block_until_ready()
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            for _ in range(10):
                out = call(*arguments)
            out.block_until_ready()
            seconds.append((time.perf_counter() - begin) / 10)
        return statistics.median(seconds)

    best = {}
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        for name in ("float64", "float32"):
            a = jax.random.normal(jax.random.key(0), (8192, 8192), name)
            best[name] = 2 * 8192**3 / least(jax.jit(jnp.matmul), a, a)
        a = jnp.ones(2**29, jnp.float32)
        best["bytes"] = 2 * a.nbytes / least(jax.jit(lambda a: a + 1), a)
    print("limits: " + ", ".join(f"{name} {rate / 1e12:.2f} T/s" for name, rate in best.items()))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="*", default=SIZES, metavar="N,D,K")
    parser.add_argument("--lloyd", nargs="*", default=LLOYD, metavar="N,D,K")
    parser.add_argument("--kinds", nargs="+", default=("full", "diag", "spherical"))
    parser.add_argument("--dtypes", nargs="+", default=("float32", "float64"), choices=("float64", "float32"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="write the rows to this file, a JSON object a line")
    options = parser.parse_args()
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu":
        raise SystemExit("JAX has no GPU here")
    stamp = versions() | {"device": device.device_kind}
    rates = limits(jax)
    stamp |= {f"{name}_per_second": float(f"{rate:.4g}") for name, rate in rates.items()}
    tasks = [
        {"task": "iteration", "size": size, "kind": kind, "dtype": dtype}
        for size in options.sizes
        for dtype in options.dtypes
        for kind in options.kinds
    ]
    tasks += [{"task": "lloyd", "size": s, "kind": "k-means", "dtype": "float32"} for s in options.lloyd]
    tasks.sort(key=lambda task: int(task["size"].split(",")[0]))  # a run that is cut short has the small ones
    contenders, rows = {}, []
    for task in tasks:
        n, d, k = map(int, task.pop("size").split(","))
        task |= {"n": n, "d": d, "k": k, "cores": CORES}
        own = {name: contenders.get(name) or Contender(name) for name in PEERS[task["task"]]}
        found = measure_able(own, task, options.repeats)
        contenders = {name: each for name, each in (contenders | own).items() if each.process.poll() is None}
        if not found:
            continue
        row = row_of(task, found, rates)
        show(task["task"], row)
        rows.append({"benchmark": "gpu"} | row | stamp)
        if options.json:
            write(rows, options.json)
    for contender in contenders.values():
        contender.close()


if __name__ == "__main__":
    main()
