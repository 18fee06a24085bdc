"""Simulation-based calibration of both samplers at full size: rank histograms, p-values, and the figure of the docs.

    uv run python benchmarks/calibration.py [--gibbs 5000] [--nuts 1000] [--figure docs/figures/calibration.png]

The study is that of `tests/sbc.py`, which the gate runs on 200 data sets: 20 points of two overlapping clusters in two
features under a fixed proper prior, 19 nearly independent draws each, eight quantities that do not depend on labels.
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from sbc import RANKS, study, uniformity

BATCH = 200


def ranks_of(method, count):
    from tqdm import tqdm

    parts = []
    for batch in tqdm(range(-(-count // BATCH)), desc=method, disable=None):
        parts.append(study(method, "VVV", BATCH, 10_000 + BATCH * batch).ranks)
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}


def draw(table, path):
    """A histogram a quantity and sampler, with the band that 99% of uniform counts lie in."""
    from matplotlib.figure import Figure
    from scipy import stats

    from bayesmix.plots import COLORS

    shown = [(method, name, row["counts"]) for method, rows in table.items() for name, row in rows.items()]
    figure = Figure(figsize=(10, 1.6 * len(shown) / 4 + 0.4), layout="constrained")
    axes = figure.subplots(len(shown) // 4, 4, sharex=True).ravel()
    for ax, (method, name, counts) in zip(axes, shown):
        n = sum(counts)
        ax.axhspan(*stats.binom.interval(0.99, n, 1 / RANKS), color="0.9")
        ax.axhline(n / RANKS, color="0.5", linewidth=0.8)
        ax.bar(np.arange(RANKS), counts, color=COLORS[list(table).index(method)], width=0.8)
        ax.set_ylim(0, 2 * n / RANKS)
        ax.set_title(f"{method}, {n}: {name}", fontsize=9)
    for ax in axes[-4:]:
        ax.set_xlabel("rank of the truth")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gibbs", type=int, default=5000)
    parser.add_argument("--nuts", type=int, default=1000)
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "figures" / "calibration.png")
    options = parser.parse_args()
    found = {
        method: ranks_of(method, count)
        for method, count in (("gibbs", options.gibbs), ("nuts", options.nuts))
        if count
    }
    table = {
        method: {
            name: {"p": round(uniformity(r), 4), "counts": np.bincount(r, minlength=RANKS).tolist()}
            for name, r in ranks.items()
        }
        for method, ranks in found.items()
    }
    for method, rows in table.items():
        for name, row in rows.items():
            print(f"{method:6} {len(found[method][name])} {name:20} p = {row['p']:.3f}")
    result = {"date": datetime.now(UTC).date().isoformat(), "ranks": table}
    path = ROOT / "benchmarks" / "results" / "calibration.json"
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    draw(table, options.figure)


if __name__ == "__main__":
    main()
