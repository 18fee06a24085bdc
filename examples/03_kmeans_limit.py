"""k-means is a limit of the mixture: soft EM with one sphere of radius sigma, as sigma goes to zero.

With equal weights and covariances sigma² I, the responsibilities are r ∝ exp(-|x - m|² / 2 sigma²). As sigma
falls, each point goes wholly to its nearest mean, and EM's steps become those of Lloyd's algorithm.

Run: python examples/03_kmeans_limit.py [FOLDER]     (with a folder, the figure is written there)
"""

import sys
from pathlib import Path

import numpy as np

import bayesmix as bm
from bayesmix import plots

# Three overlapping clouds, and one start for everybody.
truth = bm.GaussianMixture.of([1 / 3] * 3, [[0, 0], [3, 0], [1.5, 2.6]], [1.0], covariance="EII")
x, _ = truth.simulate(400, key=1)
start = x[:3]

kmeans = bm.kmeans(x, 3, init=start)

# The same loop with soft responsibilities. The start is a mixture; its weights and its sphere are held.
sigmas, fits, distances = [1.5, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01], [], []
for sigma in sigmas:
    sphere = bm.GaussianMixture.of([1 / 3] * 3, start, [sigma**2], covariance="EII")
    fit = bm.fit(bm.MixtureModel(3, "EII"), x, init=sphere, hold=("weights", "covariance"))
    fits.append(fit)
    distances.append(np.abs(fit.mixture.means - kmeans.mixture.means).max())
    doubt = 1 - fit.mixture.responsibilities(x).max(axis=1).mean()
    print(f"sigma {sigma:5.2f}: centres off by {distances[-1]:.1e}, mean doubt about a point {doubt:.4f}")

if len(sys.argv) > 1:
    axes = plots.plot_kmeans_limit(fits, kmeans, x)
    axes[0].figure.savefig(Path(sys.argv[1]) / "kmeans_limit.png", dpi=110)

# The claims: the same labels, and centres that approach those of k-means to the last digits.
assert (fits[-1].labels == kmeans.labels).all()
assert distances[-1] < 1e-9 < 1e-2 < distances[0]
