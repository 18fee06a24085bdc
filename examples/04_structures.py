"""The fourteen covariance structures: how many numbers each needs, and how well each describes a geyser.

Run: python examples/04_structures.py [FOLDER]     (with a folder, the figure is written there)
"""

import sys
from pathlib import Path

import bayesmix as bm
from bayesmix import plots

x = bm.datasets.load("old_faithful")
found = bm.search(x, n_components=[3])
table = found.table.set_index("covariance")[["n_parameters", "log_likelihood", "bic"]]
print(table.round(2))

# A family within another cannot describe the data better; the penalty decides whether it is worth its parameters.
for narrow, wide in (("EII", "VII"), ("EEI", "EEE"), ("EEE", "VEE"), ("EEE", "EVE")):
    assert table.loc[narrow, "log_likelihood"] <= table.loc[wide, "log_likelihood"] + 1e-3
assert table.index[0] == "EEE"

if len(sys.argv) > 1:
    axes = plots.plot_structures()
    axes.ravel()[0].figure.savefig(Path(sys.argv[1]) / "structures.png", dpi=110)
