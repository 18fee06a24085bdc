"""How many kinds of eruption, and of which shape? Every cell of k x structure, ranked.

Run: python examples/05_search.py [FOLDER]     (with a folder, the figure is written there)
"""

import sys
from pathlib import Path

import bayesmix as bm

x = bm.datasets.load("old_faithful")
found = bm.search(x)
print(
    found.top(5)[["n_components", "covariance", "log_likelihood", "n_parameters", "bic", "difference"]].round(
        2
    )
)
print(found.best.mixture.summary().round(2))

# BIC takes three clusters with one covariance for all; two of them are one kind of eruption that is no ellipse.
assert (found.best.mixture.structure, found.best.mixture.n_components) == ("EEE", 3)
assert bm.merge_clusters(found.best, x).n_elbow == 2

if len(sys.argv) > 1:
    ax = found.plot()
    ax.set_title("Old Faithful: 126 cells")
    ax.figure.set_size_inches(8, 5)
    ax.figure.savefig(Path(sys.argv[1]) / "search.png", dpi=110)
