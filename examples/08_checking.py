"""Is the model any good, and what is a cluster? Old Faithful, described by one, two and three Gaussians.

Run: python examples/08_checking.py [FOLDER]     (with a folder, the figures are written there)
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

import bayesmix as bm
from bayesmix import plots

x = bm.datasets.load("old_faithful")

# A model that is right simulates data like those that it was fitted to. One Gaussian does not.
one, two = (bm.check_fit(bm.fit(bm.MixtureModel(k), x), x) for k in (1, 2))
print(f"one Gaussian:  {one.status}")
print(f"two Gaussians: {two.status}\n")
print(f"{one.summary()['verdict'].to_string()}\n")

# With equal covariances BIC takes three Gaussians, two of which share the long eruptions: one cluster.
three = bm.fit(bm.MixtureModel(3, "EEE"), x)
hierarchy = bm.merge_clusters(three, x)
print(f"{hierarchy.summary().round(2)}\n")
print(f"the elbow is at {hierarchy.n_elbow} clusters, which are {hierarchy.groups(hierarchy.n_elbow)}")

if len(sys.argv) > 1:
    folder = Path(sys.argv[1])
    figure = Figure(figsize=(12.6, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    plots.plot_check(one, ax=axes[:1])
    plots.plot_check(two, ax=axes[1:])
    figure.savefig(folder / "check_fit.png", dpi=110)
    hierarchy.plot()[0].figure.savefig(folder / "merging.png", dpi=110)

# The claims: one Gaussian is told from the data, two are not, and the two that overlap are one cluster.
assert one.checks["distances in cluster 0"].differs
assert not any(check.differs for check in two.checks.values())
assert hierarchy.n_elbow == 2
assert (hierarchy.labels(2) == bm.fit(bm.MixtureModel(2), x).labels).mean() in (0.0, 1.0)
