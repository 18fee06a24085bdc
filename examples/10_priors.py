"""What do three priors believe of data before they see them? Three clusters for the velocities of 82 galaxies.

Run: python examples/10_priors.py [FOLDER]     (with a folder, the figure is written there)
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import bayesmix as bm
from bayesmix import plots

galaxies = bm.datasets.load("galaxies") / 1000  # 1000 km/s
figure = Figure(figsize=(12, 7.5), layout="constrained")
panels = figure.subplots(3, 4)
width, ratio = {}, {}
for prior, axes in zip(("weak", "hierarchical", "lkj"), panels):
    draws = bm.MixtureModel(3, "V", prior).prior_predictive(500, key=1, like=galaxies)
    plots.plot_prior(draws, galaxies, n_draws=3, ax=axes)
    axes[0].set_ylabel(f"{prior}\nshare of points")
    deviation = np.sqrt(draws["prior"]["covariances"].values[0, ..., 0, 0])
    width[prior] = np.quantile(deviation, [0.05, 0.5, 0.95])
    ratio[prior] = np.median(deviation.max(axis=1) / deviation.min(axis=1))
    low, middle, high = width[prior]
    print(f"{prior:>12}: a cluster's standard deviation is {middle:.2g}, from {low:.1g} to {high:.2g};")
    print(f"{'':>14}within a draw the widest is {ratio[prior]:.1f} times the narrowest")

if len(sys.argv) > 1:
    figure.savefig(Path(sys.argv[1]) / "priors.png", dpi=110)

# The claims: the hierarchical prior leaves the clusters' size open over orders of magnitude, not how much they differ.
span = {prior: quantiles[2] / quantiles[0] for prior, quantiles in width.items()}
assert span["hierarchical"] > 100 > span["lkj"] > span["weak"]
assert ratio["hierarchical"] < ratio["lkj"]
