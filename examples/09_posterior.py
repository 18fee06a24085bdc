"""The posterior of two kinds of eruption: sampled, diagnosed, labels undone, asked, and compared with one kind.

Run: python examples/09_posterior.py [FOLDER]     (with a folder, the figures are written there)
"""

import sys
from pathlib import Path

import bayesmix as bm
from bayesmix import plots

x = bm.datasets.load("old_faithful")
model = bm.MixtureModel(2, "full", prior="weak")
options = {"method": "gibbs", "n_warmup": 200, "n_draws": 500}

# Every sweep ends with a random labelling, as a sampler may choose; then labels are undone of switching.
raw = bm.sample_posterior(model, x, key=3, permute=True, relabelling=None, **options)
posterior = bm.relabel(raw)
print(bm.diagnose(posterior))
means = posterior["posterior"]["means"]
print("\nmean of each cluster, and its posterior standard deviation")
print(means.mean(["chain", "draw"]).to_pandas().round(2))
print(means.std(["chain", "draw"]).to_pandas().round(2))

# Questions to it, with their uncertainty.
print("\ntwo points: the first lies between the clusters")
print(bm.classify(posterior, [[3.0, 65.0], [4.5, 80.0]]).to_dataframe().round(3))
print("\n" + str(bm.partition(posterior)))

one = bm.sample_posterior(bm.MixtureModel(1, "full", prior="weak"), x, key=4, **options)
table = bm.compare({"one kind": one, "two kinds": posterior}, key=5)
print("\n" + table[["elpd_loo", "difference_se", "log_evidence", "probability"]].round(2).to_string())

if len(sys.argv) > 1:
    folder = Path(sys.argv[1])
    plots.plot_relabelling(raw, posterior, feature=1)[0].figure.savefig(folder / "relabelling.png", dpi=150)
    plots.plot_density_band(posterior)[0].figure.savefig(folder / "density_band.png", dpi=150)
