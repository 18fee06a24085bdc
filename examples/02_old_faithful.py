"""Unknown parameters: how many kinds of eruption does the geyser Old Faithful have?

Each of 272 eruptions has a duration and a waiting time until the next one, in minutes. We fit one to four
clusters by EM and let BIC, which charges log(n) for a parameter, choose.

Run: python examples/02_old_faithful.py [FOLDER]     (with a folder, the figure is written there)
"""

import sys
from pathlib import Path

import bayesmix as bm
from bayesmix import plots

x = bm.datasets.load("old_faithful")

# The story first, then inference: each fit is the best of ten starts, and says how many of them agree.
fits = {k: bm.fit(bm.MixtureModel(n_components=k, covariance="full"), x) for k in (1, 2, 3, 4)}
for k, fit in fits.items():
    print(f"k = {k}: log-likelihood {fit.log_likelihood:9.3f}, BIC {fit.bic:8.2f}, {fit.status}")

# A collapsed or spurious fit has a likelihood that means nothing, so only clean ones may win.
best = min((fit for fit in fits.values() if not fit.spurious), key=lambda fit: fit.bic)
print(f"\nBIC chooses k = {best.mixture.n_components}\n{best.mixture.summary().round(2)}\n")

# The result is a mixture, so it answers questions: after an eruption of 3 minutes, how long will the wait be?
waiting = best.mixture.condition({"eruptions": 3.0})
print(f"after 3 minutes: the wait is {waiting.weights @ waiting.means[:, 0]:.1f} minutes on average;")
long = waiting.means[:, 0].argmax()
print(f"such an eruption is one of the long ones with probability {waiting.weights[long]:.2f}")

if len(sys.argv) > 1:
    ax = plots.plot_clusters(best.mixture, x)
    ax.set(xlabel="eruption (minutes)", ylabel="waiting for the next (minutes)")
    ax.figure.savefig(Path(sys.argv[1]) / "old_faithful.png", dpi=110)

# The claims: two kinds, short and long, as every analysis of these data finds; all ten starts agree on it.
assert best is fits[2]
assert best.n_agree == best.n_starts == 10
assert abs(best.log_likelihood - -1130.264) < 0.001
