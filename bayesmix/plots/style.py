"""What all figures share: colours, markers and axes.

The colours are those of Okabe & Ito, which people with any colour vision tell apart; the markers say the same
in print.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = [
    "COLORS", "MARKERS", "ellipse", "ink_on", "mixed_colors", "new_axes", "new_figure", "panels", "style_of",
    "whole_numbers",
]  # fmt: skip

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C8C00")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
_LOOK: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "lines.linewidth": 1.6,
}


def new_figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> Any:
    """An array (rows, columns) of Axes of a new figure, each of that size in inches."""
    from matplotlib import pyplot

    figsize = (size[0] * columns, size[1] * rows)
    with pyplot.rc_context(_LOOK):
        return pyplot.subplots(
            rows, columns, figsize=figsize, layout="constrained", squeeze=False, **options
        )[1]


def new_axes(ax: Any) -> Any:
    """The given Axes, or those of a new figure."""
    return new_figure(1, 1, (6.4, 4.6))[0, 0] if ax is None else ax


def panels(ax: Any, count: int, size: tuple[float, float], what: str) -> np.ndarray:
    """An array (count,) of Axes: the given ones, or those of a new figure, each of that size in inches.

    Raises:
        ValueError: another number of axes; `what` names what needs this many.
    """
    if ax is None:
        columns = count if count <= 3 else 2 if count == 4 else 3
        axes = new_figure(-(-count // columns), columns, size).ravel()
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
    """Ticks of the horizontal axis at whole numbers only, be it a single one."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def style_of(cluster: int) -> tuple[str, str]:
    """Colour and marker; pairs are distinct for 49 clusters."""
    return COLORS[cluster % 7], MARKERS[(cluster + cluster // 7) % 7]


def ink_on(ground: Any) -> str:
    """Black or white, whichever stands out more from a ground of that colour, by its relative luminance."""
    from matplotlib.colors import to_rgb

    luminance = np.array(to_rgb(ground)) ** 2.2 @ [0.2126, 0.7152, 0.0722]
    return "white" if luminance < 0.18 else "black"  # there (1 + 0.05) / (L + 0.05) = (L + 0.05) / 0.05


def mixed_colors(r: np.ndarray) -> np.ndarray:
    """The clusters' colours mixed by responsibilities (..., k), as red, green and blue (..., 3)."""
    from matplotlib.colors import to_rgb

    palette = np.array([to_rgb(style_of(cluster)[0]) for cluster in range(r.shape[-1])])
    return np.clip(r @ palette, 0, 1)
