"""What all figures share: colours, markers and axes.

The colours are those of Okabe & Ito, which people with any colour vision tell apart; the markers say the same
in print.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["COLORS", "MARKERS", "ellipse", "new_axes", "panels", "style_of", "whole_numbers"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C8C00")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")


def new_axes(ax: Any) -> Any:
    """The given Axes, or those of a new figure."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def panels(ax: Any, count: int, size: tuple[float, float], what: str) -> np.ndarray:
    """An array (count,) of Axes: the given ones, or those of a new figure, each of that size in inches.

    Raises:
        ValueError: another number of axes; `what` names what needs this many.
    """
    if ax is None:
        from matplotlib import pyplot

        columns = count if count <= 3 else 2 if count == 4 else 3
        rows = -(-count // columns)
        figsize = (size[0] * columns, size[1] * rows)
        axes = pyplot.subplots(rows, columns, figsize=figsize, layout="constrained", squeeze=False)[1].ravel()
        for spare in axes[count:]:
            spare.set_axis_off()
        return axes[:count]
    axes = np.asarray(ax).ravel()
    if axes.size != count:
        raise ValueError(f"{what} needs ax as an array of {count} Axes, not {axes.size}")
    return axes


def ellipse(mean: np.ndarray, covariance: np.ndarray, times: float, **style: Any) -> Any:
    """The line at so many standard deviations: Σ = V diag(λ) Vᵀ has half axes √λ along the columns of V."""
    from matplotlib.patches import Ellipse

    values, vectors = np.linalg.eigh(covariance)
    angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
    minor, major = 2 * times * np.sqrt(np.maximum(values, 0))
    center = float(mean[0]), float(mean[1])
    return Ellipse(center, major, minor, angle=angle, **({"fill": False} | style))


def whole_numbers(ax: Any) -> None:
    """Ticks of the horizontal axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def style_of(cluster: int) -> tuple[str, str]:
    """Colour and marker; pairs are distinct for 49 clusters."""
    return COLORS[cluster % 7], MARKERS[(cluster + cluster // 7) % 7]
