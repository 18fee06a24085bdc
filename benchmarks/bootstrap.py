"""999 bootstrap replicates of VVV,3 on Old Faithful, against mclust's MclustBootstrap run live.

    uv run --group benchmarks python benchmarks/bootstrap.py [--repeats 5] [--weighted]

bayesmix starts from the fit that mclust has, so that both do the same work. mclust's weighted likelihood bootstrap takes
minutes, so it runs once, and only with --weighted; without R its rows are left out. Cold is the first call, with
compilation; medians of the repeats are printed and written as JSON lines.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from shared import versions  # isort: skip: before NumPy

import numpy as np

import bayesmix as bm

R = """
suppressMessages(library(mclust))
kind <- commandArgs(TRUE)[1]
fit <- Mclust(faithful, G = 3, modelNames = "VVV", verbose = FALSE)
t <- system.time(b <- MclustBootstrap(fit, nboot = 999, type = kind, verbose = FALSE))[["elapsed"]]
cat(t, "\\n")
cat(fit$loglik, apply(b$mean, c(2, 3), sd, na.rm = TRUE), "\\n")
cat(fit$parameters$mean, "\\n")
"""


def mclust(kind):
    if shutil.which("Rscript") is None:
        return None
    done = subprocess.run(["Rscript", "-e", R, kind], capture_output=True, text=True)
    if done.returncode:
        return None
    seconds, second, means = done.stdout.strip().splitlines()
    numbers = [float(v) for v in second.split()]
    return (
        float(seconds),
        numbers[0],
        np.reshape(numbers[1:], (3, 2)),
        np.reshape([float(v) for v in means.split()], (3, 2)),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--weighted", action="store_true", help="also mclust's weighted bootstrap: minutes")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "bootstrap.jsonl"))
    options = parser.parse_args()
    x = bm.datasets.load("old_faithful")
    peer = mclust("bs")
    start = {} if peer is None else {"init": peer[3]}
    fit = bm.fit(bm.MixtureModel(3), x, **start)
    stamp = versions()
    with open(options.out, "a", encoding="utf-8") as out:
        for kind, name in (("weighted", "wlbs"), ("nonparametric", "bs")):
            clock = time.perf_counter()
            bm.bootstrap(fit, x, key=0, kind=kind)
            cold = time.perf_counter() - clock
            ours, theirs = [], []
            for _ in range(options.repeats):
                clock = time.perf_counter()
                tree = bm.bootstrap(fit, x, key=0, kind=kind)
                ours.append(time.perf_counter() - clock)
                if name == "bs" and peer is not None:
                    theirs.append(mclust("bs")[0])
            if name == "wlbs" and options.weighted and peer is not None:
                theirs.append(mclust("wlbs")[0])
            row = {
                "benchmark": "bootstrap",
                "kind": kind,
                "replicates": 999,
                "log_likelihood": round(float(fit.log_likelihood), 4),
                "warm_s": round(statistics.median(ours), 3),
                "cold_s": round(cold, 2),
                "mean_steps": round(float(tree["sample_stats"]["steps"].mean()), 1),
                "not_clean": tree["posterior"].attrs["n_not_clean"],
            }
            if theirs:
                seconds = statistics.median(theirs)
                row |= {"mclust_s": round(seconds, 2), "mclust_log_likelihood": round(peer[1], 4),
                        "ratio_warm": round(seconds / row["warm_s"], 1)}  # fmt: skip
            print(row | stamp)
            out.write(json.dumps(row | stamp) + "\n")


if __name__ == "__main__":
    main()
