"""The full search, 9 numbers of clusters x 14 structures, against mclust run live.

    uv run --group benchmarks python benchmarks/search.py [--repeats 5]

Two data sets: Old Faithful (272, 2), and 2,000 points in six features from four overlapping clusters. Warm searches run
in this process, after one that compiles, with the default four starts a cell and with one, which is all that mclust
has; cold ones each in a process of its own, with the import of the package and all compilation. mclust runs in R where
there is one, library loaded before the clock starts, on the same data; where R or mclust is absent its rows are left
out, because a recorded ratio is not a measurement. The contenders alternate; medians of the repeats are printed and
written as JSON lines.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shared import versions  # isort: skip: before NumPy

import numpy as np

import bayesmix as bm

R = """
suppressMessages(library(mclust))
x <- as.matrix(read.csv(commandArgs(TRUE)[1]))
invisible(gc())
t <- system.time(b <- mclustBIC(x, G = 1:9, verbose = FALSE))[["elapsed"]]
best <- summary(b, x)
cat(t, max(b, na.rm = TRUE), best$modelName, best$G, "\\n")
"""
COLD = """
import sys, time
clock = time.perf_counter()
import numpy as np, bayesmix as bm
found = bm.search(np.loadtxt(sys.argv[1], delimiter=",", skiprows=1))
found.best
print(time.perf_counter() - clock)
"""


def sample():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(4, 6, 6)) * 0.35 + np.eye(6)
    means = rng.normal(size=(4, 6)) * 2
    return np.concatenate([rng.normal(size=(500, 6)) @ f + m for f, m in zip(factors, means)])


def mclust(path):
    if shutil.which("Rscript") is None:
        return None
    done = subprocess.run(["Rscript", "-e", R, path], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1:], file=sys.stderr)
        return None
    seconds, bic, name, k = done.stdout.split()
    return float(seconds), float(bic), name, int(k)


def compare(name, x, repeats, folder):
    path = str(Path(folder) / f"{name}.csv")
    np.savetxt(path, x, delimiter=",", header=",".join(f"x{j}" for j in range(x.shape[1])), comments="")
    x = np.loadtxt(path, delimiter=",", skiprows=1)
    bm.search(x)
    ours, alone, colds, theirs = [], [], [], []
    for _ in range(repeats):
        clock = time.perf_counter()
        single = bm.search(x, n_starts=1).best
        alone.append(time.perf_counter() - clock)
        clock = time.perf_counter()
        found = bm.search(x)
        best = found.best
        ours.append(time.perf_counter() - clock)
        process = [sys.executable, "-c", COLD, path]
        colds.append(float(subprocess.run(process, capture_output=True, text=True, check=True).stdout))
        theirs.append(mclust(path))
    cold = statistics.median(colds)
    row = {
        "benchmark": "search",
        "data": name,
        "n": len(x),
        "d": x.shape[1],
        "cells": len(found.table),
        "starts": int(found.table["n_starts"].max()),
        "warm_s": round(statistics.median(ours), 3),
        "one_start_warm_s": round(statistics.median(alone), 3),
        "cold_with_import_s": round(cold, 2),
        "best": f"{best.mixture.structure},{best.mixture.n_components}",
        "bic": round(-best.bic, 4),
        "one_start_bic": round(-single.bic, 4),
    }
    if all(theirs):
        peer = statistics.median(t[0] for t in theirs)
        row |= {
            "mclust_s": round(peer, 3),
            "mclust_best": f"{theirs[0][2]},{theirs[0][3]}",
            "mclust_bic": theirs[0][1],
            "ratio_warm": round(peer / row["warm_s"], 2),
            "ratio_one_start": round(peer / row["one_start_warm_s"], 2),
            "ratio_cold": round(peer / cold, 2),
        }
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "search.jsonl"))
    options = parser.parse_args()
    stamp = versions()
    data = {"old_faithful": bm.datasets.load("old_faithful").to_numpy(), "four_clusters": sample()}
    with tempfile.TemporaryDirectory() as folder, open(options.out, "a", encoding="utf-8") as out:
        for name, x in data.items():
            row = compare(name, x, options.repeats, folder) | stamp
            print(row)
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
