"""How sure are the means of the two kinds of eruption? Four answers that agree.

Run: python examples/06_uncertainty.py [FOLDER]     (with a folder, the figure is written there)
"""

import sys
from pathlib import Path

import numpy as np

import bayesmix as bm
from bayesmix.plots import COLORS, MARKERS

x = bm.datasets.load("old_faithful")
fit = bm.fit(bm.MixtureModel(2), x)
answers = {"information": bm.standard_errors(fit, x).means, "jackknife": bm.jackknife(fit, x).means}
for kind in ("weighted", "nonparametric", "parametric"):
    draws = bm.bootstrap(fit, x, key=0, kind=kind)["posterior"]
    answers[f"{kind} bootstrap"] = draws["means"].std("draw").values[0]
for name, errors in answers.items():
    print(f"{name:24}", np.round(errors, 4).tolist())
assert np.ptp([errors / answers["jackknife"] for errors in answers.values()], axis=0).max() < 0.25

if len(sys.argv) > 1:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    for j, ax in enumerate(axes):
        for row, errors in enumerate(answers.values()):
            for k in range(2):
                away = 1.96 * errors[k, j]
                ax.errorbar(
                    0, row + 0.24 * k - 0.12, xerr=away, color=COLORS[k], marker=MARKERS[k], capsize=3,
                    label=f"cluster {k}" if not row else None,
                )  # fmt: skip
        ax.set_xlabel(f"mean of {x.columns[j]}, 95% about the fit")
        ax.set_yticks(range(len(answers)), list(answers))
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize="small")
    figure.savefig(Path(sys.argv[1]) / "uncertainty.png", dpi=110)
