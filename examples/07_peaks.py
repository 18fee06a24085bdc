"""Two clusters, three peaks: what a density's hills have to do with its clusters.

Two long, narrow clusters lie across each other. Each has its own peak, and where they cross a third one rises, the
highest. All peaks of two clusters lie on their ridgeline (Ray & Lindsay 2005), the curve of points at which the
clusters pull in exactly opposite directions.

Run: python examples/07_peaks.py [FOLDER]     (with a folder, the figure is written there)
"""

import sys
from pathlib import Path

import numpy as np

import bayesmix as bm
from bayesmix import plots
from bayesmix.peaks import ridgeline

mixture = bm.GaussianMixture.of(
    weights=[0.5, 0.5], means=[[0, 0], [1, 1]], covariances=[[1, 0.05], [0.05, 1]], covariance="diag"
)
modes = mixture.modes()
print(modes.summary().round(4))
print("the clusters climb to peaks", modes.cluster_mode)

# The smallest region that holds half of the mixture: a level of the density, found over draws.
half = mixture.highest_density_region(0.5)
print(
    f"half of the mixture lies where log p is at least {half.log_level:.3f} (± {half.coverage_error:.4f} of it)"
)
print(f"a draw of one cluster is taken for the other's with probability {mixture.overlap()[0, 1]:.4f}")

line = ridgeline(mixture.means, mixture.covariances, 400)
if len(sys.argv) > 1:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 4.4), layout="constrained")
    u, v = np.linspace(-2.9, 2.9, 221), np.linspace(-1.9, 3.9, 221)
    grid = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
    density = mixture.log_density(grid).reshape(221, 221)
    levels = modes.log_density.max() - np.array([4, 3, 2, 1.5, 1, 0.75, 0.5, 0.35, 0.2, 0.1, 0.03])
    left.contour(u, v, density, levels=levels, colors="0.6", linewidths=0.8, linestyles="solid")
    left.contour(u, v, density, levels=[half.log_level], colors="0.25", linewidths=1.8, linestyles="solid")
    left.plot(*line.T, color=plots.COLORS[1], label="ridgeline")
    left.plot(*mixture.means.T, "x", color=plots.COLORS[0], markersize=9, markeredgewidth=2, label="means")
    left.plot(*modes.points.T, "o", color=plots.COLORS[2], markersize=6, label="peaks")
    left.set(xlabel="x0", ylabel="x1", aspect="equal")
    left.set_title("density, and the half of it that is densest", fontsize="medium")
    left.legend(loc="upper left")
    along = np.insert(np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1)), 0, 0)
    right.plot(along, np.exp(mixture.log_density(line)), color=plots.COLORS[1])
    nearest = np.linalg.norm(modes.points[:, None] - line, axis=2).argmin(axis=1)
    right.plot(along[nearest], np.exp(modes.log_density), "o", color=plots.COLORS[2], markersize=6)
    right.set(xlabel="way along the ridgeline", ylabel="density", ylim=(0, 0.5))
    figure.savefig(Path(sys.argv[1]) / "ridgeline.png", dpi=110)

assert len(modes) == 3
assert set(modes.cluster_mode) == {1, 2}  # no cluster's mean climbs to the highest
