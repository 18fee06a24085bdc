"""How a run ended: an integer inside the loop, a sentence at the boundary, and what it means for the mixture.

A mixture is `clean` if its likelihood means something: nothing collapsed, is spurious, degenerate or out of the finite
numbers. Only clean ones may win, and among them the objective alone decides: a run that reached max_steps has an honest
mixture, if not a local maximum. A run `converged` if it came to its proper end, at an optimum that can be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

__all__ = ["CODE", "NAME", "STATUS", "Status", "sentence"]


class Status(NamedTuple):
    """A row of `STATUS`; `sentence` fills the braces of its text."""

    code: int
    clean: bool
    converged: bool
    text: str


STATUS = {
    "running": Status(0, True, False, "still running"),
    "converged": Status(1, True, True, "converged"),
    "max_steps": Status(
        2,
        True,
        False,
        "reached max_steps={max_steps} before converging{gained}; raise max_steps",
    ),
    "non_finite": Status(
        3,
        False,
        False,
        "non-finite: a step left the finite numbers, so the last finite mixture is returned; "
        'check the starting mixture, or use prior="weak"',
    ),
    "degenerate": Status(
        4,
        False,
        False,
        "degenerate data: {columns}, so {structure} has no maximum-likelihood estimate along it and the variance "
        'floor held there; drop the column, choose a structure that does not need it, or use prior="weak"',
    ),
    "collapsed": Status(
        5,
        False,
        False,
        "collapsed component: {clusters}; so the likelihood means nothing as that of {k} clusters: use "
        'prior="weak", fewer clusters or a structure with equal volumes',
    ),
    "spurious": Status(
        6,
        False,
        False,
        'spurious: {clusters}; such a fit follows a few points, not a group: use prior="weak", fewer clusters or a '
        "structure with equal volumes",
    ),
    "few_rows": Status(
        7,
        True,
        True,
        "converged, but the data have only {distinct} distinct rows for {k} clusters, up to rounding, "
        "so {empty} stay empty",
    ),
    "averaged": Status(
        8,
        True,
        True,
        "finished: the mixture of the averaged statistics of the later half of {max_steps} draws",
    ),
    "settled": Status(
        9,
        True,
        True,
        "finished: the mixture that the statistics of {max_steps} draws settled at, by steps of decreasing size",
    ),
    "online": Status(
        10,
        True,
        True,
        "finished: the mixture that the statistics of {max_steps} batches settled at, by steps of decreasing size",
    ),
    "empty": Status(-1, False, False, "a cluster lost all its points"),
    "thin": Status(-2, False, False, "a cluster became too thin for raw moments"),
}
CODE = {name: row.code for name, row in STATUS.items()}
NAME = {code: name for name, code in CODE.items()}


def sentence(
    name: str,
    reasons: Mapping[int, str],
    labels: np.ndarray,
    *,
    max_steps: int,
    gain: float,
    columns: str,
    structure: str,
    k: int,
) -> str:
    """The sentence of a status, with what it says about this run."""
    distinct = np.count_nonzero(np.bincount(labels))
    return STATUS[name].text.format(
        max_steps=max_steps,
        gained=f" (the last step gained {gain:.2g} nats)" if np.isfinite(gain) else "",
        clusters="; ".join(_cluster(c, why, labels) for c, why in reasons.items()),
        columns=columns,
        structure=structure,
        k=k,
        distinct=distinct,
        empty=k - distinct,
    )


def _cluster(cluster: int, why: str, labels: np.ndarray) -> str:
    rows = np.flatnonzero(labels == cluster)
    shown = ", ".join(map(str, rows[:8])) + (", ..." if rows.size > 8 else "")
    return f"cluster {cluster} (rows {shown or 'none'})" + (f" {why}" if why else "")
