"""What do mclust's letters mean? Three clusters under each of the 14 covariance structures.

Σ_k = λ_k D_k A_k D_kᵀ: a volume λ_k, a shape A_k (the squared lengths of the axes, product one) and an orientation
D_k (their directions). Each letter says of one of them whether it is equal (E) in all clusters, varies (V), or is
the identity (I): a sphere has no shape, and without an orientation the axes are those of the data.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bayesmix.covariance import ALIASES
from bayesmix.plots.style import COLORS, ellipse, new_figure

__all__ = ["STRUCTURE_GRID", "plot_structures", "structure_covariances"]

STRUCTURE_GRID = (
    ("EII", "VII", "", ""),
    ("EEI", "VEI", "EVI", "VVI"),
    ("EEE", "VEE", "EVE", "VVE"),
    ("EEV", "VEV", "EVV", "VVV"),
)
_MEANS = np.array([[-2.6, -1.0], [0.0, 1.4], [2.6, -1.0]])
_VOLUMES = (0.5, 0.22, 0.8)
_RATIOS = (2.4, 1.5, 3.4)  # of the longer axis to the shorter
_TURNS = (35.0, -20.0, 100.0)  # degrees
_WORDS = {"E": "equal", "V": "varies", "I": "identity"}
_LEGEND = (
    "Three letters: volume, shape, orientation\n"
    "  E  equal in all clusters\n"
    "  V  varies from cluster to cluster\n"
    "  I  identity: spheres; axes along the features\n"
    "In brackets: scikit-learn's word"
)


def plot_structures(*, ax: Any = None) -> np.ndarray:
    """Draw the 14 covariance structures, three clusters each, by their ellipses at one standard deviation.

    Columns share volume and shape, rows the orientation.

    Args:
        ax: a (4, 4) array of Axes; two of them hold the meaning of the letters.

    Returns:
        The (4, 4) array.

    Raises:
        ValueError: axes of another shape.

    Example:
        >>> from bayesmix import plots
        >>> from matplotlib.figure import Figure
        >>> axes = plots.plot_structures(ax=Figure().subplots(4, 4))
        >>> axes[0, 1].get_title(), len(axes[3, 3].patches)
        ('VII (spherical)', 3)
    """
    if ax is None:
        ax = new_figure(4, 4, (2.4, 2.3))
    axes: Any = np.asarray(ax)
    if axes.shape != (4, 4):
        raise ValueError(f"plot_structures needs ax as a (4, 4) array of Axes, not {axes.shape}")
    for place, name in np.ndenumerate(STRUCTURE_GRID):
        if name:
            _draw_structure(axes[place], name)
        else:
            axes[place].set_axis_off()
    legend = axes[0, 2].text(0.05, 0.5, _LEGEND, transform=axes[0, 2].transAxes, va="center", linespacing=1.7)
    legend.set_in_layout(False)
    return axes


def structure_covariances(name: str) -> np.ndarray:
    """Three covariances (3, 2, 2) of that structure, Σ_k = λ_k D_k A_k D_kᵀ."""

    def values(letter: str, varied: tuple[float, ...], identity: float) -> np.ndarray:
        return np.array({"V": varied, "E": varied[:1] * 3, "I": (identity,) * 3}[letter])

    volume = values(name[0], _VOLUMES, 1.0)
    ratio = values(name[1], _RATIOS, 1.0)
    turn = np.radians(values(name[2], _TURNS, 0.0))
    shape = np.stack([ratio, 1 / ratio], axis=1)
    axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return volume[:, None, None] * np.einsum("ijk,kj,ljk->kil", axes, shape, axes)


def _draw_structure(ax: Any, name: str) -> None:
    words = {structure: word for word, structure in ALIASES.items()}
    for cluster, covariance in enumerate(structure_covariances(name)):
        color = COLORS[cluster]
        style = {"fill": True, "facecolor": (color, 0.25), "edgecolor": color, "linewidth": 1.8}
        ax.add_patch(ellipse(_MEANS[cluster], covariance, 1, **style))
    ax.set_xlim(-4.6, 4.6)
    ax.set_ylim(-3, 3, auto=True)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_title(name + (f" ({words[name]})" if name in words else ""), weight="bold", fontsize="medium")
    volume, shape, orientation = (_WORDS[letter] for letter in name)
    ax.set_xlabel(f"volume {volume}\nshape {shape}\norientation {orientation}", fontsize="small")
