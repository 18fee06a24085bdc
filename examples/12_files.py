"""A fit in a file that any language reads, and a search that is stopped half way and goes on.

Run: python examples/12_files.py
"""

import json
import tempfile
import warnings
from pathlib import Path

import numpy as np

import bayesmix as bm
from bayesmix import cells
from bayesmix.groups import FIRST

x = bm.datasets.load("old_faithful")
folder = Path(tempfile.mkdtemp())
options = {"n_components": [1, 2, 3], "covariance": ["EEE", "VVV"], "checkpoint": folder / "search"}

# Somebody presses Ctrl-C once all starts have taken their first steps.
advance = cells.advance_some


def pressed(group, starts, steps, options):
    if steps > FIRST:
        raise KeyboardInterrupt
    advance(group, starts, steps, options)


cells.advance_some = pressed
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    part = bm.search(x, **options)
cells.advance_some = advance
print(told[0].message)
print(part.table[["n_components", "covariance", "bic", "status"]].round(2).to_string())

search = bm.search(x, **options)
print(
    "\nthe same call again\n"
    + search.table[["n_components", "covariance", "bic", "status"]].round(2).to_string()
)
assert len(part.cells) < len(search.cells) == 6

search.best.save(folder / "best.json")
document = json.loads((folder / "best.json").read_text())  # as another program would
print("\n" + ", ".join(document))
assert np.array_equal(bm.load(folder / "best.json").labels, search.best.labels)
assert document["mixture"]["means"] == search.best.mixture.means.tolist()
