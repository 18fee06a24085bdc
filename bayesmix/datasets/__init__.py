"""Small public data sets, bundled, and their loader."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from bayesmix.inputs import as_name

if TYPE_CHECKING:
    import pandas

__all__ = ["LABELLED", "NAMES", "labels", "load"]

NAMES = ("old_faithful", "iris", "galaxies")
LABELLED = ("iris",)


def load(name: str) -> pandas.DataFrame:
    """The measurements of a bundled data set, a column per feature.

    * `old_faithful` (272 × 2): eruptions of the geyser in Yellowstone, August 1985: `eruptions`, the duration in
      minutes, and `waiting`, the time to the next one in minutes. Azzalini & Bowman (1990), Applied Statistics 39.
    * `iris` (150 × 4): sepal and petal lengths and widths in cm of 50 flowers of each of three species, which
      `labels("iris")` gives. Anderson (1935), Bulletin of the American Iris Society 59.
    * `galaxies` (82 × 1): velocities in km/s of galaxies in the Corona Borealis region. Postman, Huchra & Geller
      (1986); Roeder (1990), JASA 85. Value 78 is 26690, as in most analyses; Roeder's paper has 26960.

    Raises:
        ValueError: no such data set.

    Example:
        >>> import bayesmix as bm
        >>> bm.datasets.load("old_faithful").shape
        (272, 2)
    """
    return _read(name).drop(columns="label", errors="ignore")


def labels(name: str) -> pandas.Series:
    """The known classes of a bundled data set that has them: the species of `iris`.

    Raises:
        ValueError: no such data set, or none known.
    """
    import pandas

    table = _read(name)
    if "label" not in table:
        raise ValueError(f"{name!r} has no known classes")
    return pandas.Series(table["label"])


def _read(name: str) -> pandas.DataFrame:
    import pandas

    as_name(name, "name", NAMES)
    with (files("bayesmix.datasets") / f"{name}.csv").open("r", encoding="utf-8") as file:
        return pandas.read_csv(file)
