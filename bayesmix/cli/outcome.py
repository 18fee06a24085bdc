"""What commands find: a choice among fits, its agreement with known classes, and its figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bayesmix.agreement import adjusted_rand_index, cross_counts
from bayesmix.cli.files import SINGLE, drawn
from bayesmix.cli.tables import Data

if TYPE_CHECKING:
    import pandas

    from bayesmix.mixture import GaussianMixture
    from bayesmix.results import Fit

__all__ = [
    "Agreement",
    "Choice",
    "Picture",
    "agreement_of",
    "cluster_rows",
    "clusters_picture",
    "cross_table",
]

_SMALL = (5.0, 3.75)  # inches


class Picture(NamedTuple):
    """A figure: what it is called as a file, what it shows, and how it is drawn."""

    name: str
    caption: str
    draw: Callable[[Any], Any]
    panels: tuple[int, int] = (1, 1)
    size: tuple[float, float] = SINGLE

    def png(self) -> bytes:
        """As a file."""
        return drawn(self.draw, panels=self.panels, size=self.size)

    def svg(self) -> bytes:
        """For a page, where a single panel is shown smaller and needs larger letters."""
        size = _SMALL if self.panels == (1, 1) else self.size
        return drawn(self.draw, panels=self.panels, size=size, kind="svg")


class Agreement(NamedTuple):
    """Clusters beside known classes: the column's name, the adjusted Rand index, and the cross table of counts."""

    column: str
    index: float
    classes: list[str]
    counts: np.ndarray

    def document(self) -> dict[str, Any]:
        return {
            "column": self.column,
            "adjusted_rand_index": self.index,
            "cross_table": dict(zip(self.classes, self.counts.tolist())),
        }

    @property
    def sentence(self) -> str:
        return f"Agreement with {self.column}: adjusted Rand index {self.index:.3f} (1 is the same, 0 is chance)."


class Choice(NamedTuple):
    """The fit that was chosen, by what, and the figures of how.

    Attributes:
        fit: the chosen one.
        criterion: its name in words.
        shown: all fits as a table of text, a row each.
        kinds: of each row, "chosen", "dim" where it may not be chosen, or "".
        reasons: a sentence for each fit that may not be chosen.
        record: the chosen one for scripts.
        pictures: of how it was chosen.
        tables: to be written beside the clusters, by name.
    """

    fit: Fit
    criterion: str
    shown: pandas.DataFrame
    kinds: list[str]
    reasons: list[str]
    record: dict[str, Any]
    pictures: list[Picture]
    tables: dict[str, pandas.DataFrame]

    @property
    def headline(self) -> str:
        return f"Chosen by {self.criterion}: k = {self.fit.mixture.n_components}"


def agreement_of(data: Data, clusters: np.ndarray, k: int) -> Agreement | None:
    """Where the data came with known classes; a row a class, a column a cluster, empty ones too."""
    if data.labels is None or data.column is None:
        return None
    classes, found, counts = cross_counts(data.labels, clusters)
    wide = np.zeros((len(classes), k), np.int64)
    wide[:, found] = counts
    return Agreement(data.column, adjusted_rand_index(data.labels, clusters), [str(c) for c in classes], wide)


def cross_table(agreement: Agreement) -> pandas.DataFrame:
    """The counts as text."""
    import pandas

    table = pandas.DataFrame(agreement.counts.astype(str))
    table.columns = [f"cluster {k}" for k in range(table.shape[1])]
    table.insert(0, agreement.column, agreement.classes, allow_duplicates=True)
    return table


def clusters_picture(mixture: GaussianMixture, x: Any) -> Picture:
    from bayesmix import plots

    panels, size = _panels(mixture.n_features)
    caption = (
        "The mixture over the data: ellipses at one and two standard deviations, contours of the density."
    )
    if x is not None and np.isnan(np.asarray(x)).any():
        x = mixture.impute(x, as_frame=True)
        caption += " Missing cells are where the mixture expects them."
    if mixture.n_features == 1:
        caption = "The mixture over a histogram of the data: each cluster (dashed) and their sum."
    return Picture("clusters", caption, lambda ax: plots.plot_clusters(mixture, x, ax=ax), panels, size)


def _panels(d: int) -> tuple[tuple[int, int], tuple[float, float]]:
    """How many panels `plot_clusters` needs, and how large a figure in inches."""
    from bayesmix.plots import MOST_FEATURES

    side = min(d, MOST_FEATURES) if d > 2 else 1
    return (side, side), ((2.4 * side, 2.2 * side) if side > 1 else SINGLE)


def cluster_rows(labels: Any, r: np.ndarray) -> pandas.DataFrame:
    """Each row's cluster and its probability of each (n, k)."""
    import pandas

    columns = {"cluster": labels} | {f"p{k}": r[:, k] for k in range(r.shape[1])}
    return pandas.DataFrame(columns, index=pandas.RangeIndex(len(r), name="row"))
