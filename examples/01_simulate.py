"""Known parameters: simulate a mixture, then ask it about the points that it made.

    z ~ Categorical(weights),    x | z ~ Normal(means[z], covariances[z])

Run: python examples/01_simulate.py
"""

import numpy as np

import bayesmix as bm

# A mixture is its parameters: here two clusters on a line, 70% of the points around -5, 30% around 5.
mixture = bm.GaussianMixture.of(weights=[0.7, 0.3], means=[[-5.0], [5.0]], covariances=[[[1.0]], [[1.0]]])

# Forward: first flip the coin for z, then draw x from cluster z. The same key gives the same draws.
x, z = mixture.simulate(1000, key=0)
print(f"{(z == 0).mean():.1%} of the points come from cluster 0; their mean is {x[z == 0].mean():.2f}")

# Backward: the probability of each cluster given the point, p(z | x), and the most probable one.
r = mixture.responsibilities(x)
labels = mixture.classify(x)
print(f"at x = 0 the odds are {mixture.responsibilities([0.0])[0].round(3)}, those of the coin alone")
print(f"{(labels == z).mean():.1%} of the points are classified as they were made")

# How unusual is a point? Its log density in nats, and whether any cluster is within 2.5 standard deviations.
for point in (-5.0, 0.0, 5.0):
    density, near = mixture.log_density([point])[0], mixture.within([point], radius=2.5)[0]
    print(f"log p({point:4.1f}) = {density:7.3f},  nearest cluster within 2.5 sd: {near}")

# The claims: the draws follow the law, and the clusters, ten standard deviations apart, are all found again.
assert abs((z == 0).mean() - 0.7) < 3 * np.sqrt(0.7 * 0.3 / 1000)
assert abs(x[z == 0].mean() + 5) < 3 / np.sqrt((z == 0).sum())
assert np.allclose(r.sum(axis=1), 1)
assert (labels == z).all()
assert mixture.within([0.0]).tolist() == [-1]
