"""In the place of scikit-learn's classes: the same steps from the same start, and an answer that has converged.

Run: python examples/11_scikit_learn.py
"""

import sklearn.cluster
import sklearn.mixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import bayesmix as bm
from bayesmix.sklearn import GaussianMixture, KMeans

x = bm.datasets.load("old_faithful")

# From one start both take the same steps; ours end where nothing is left to gain.
start = {"means_init": [[2.0, 54.0], [4.3, 80.0], [4.5, 90.0]], "covariance_type": "tied", "random_state": 0}
theirs = sklearn.mixture.GaussianMixture(3, **start).fit(x)
ours = GaussianMixture(3, **start).fit(x)
gain = len(x) * (ours.score(x) - theirs.score(x))
print(f"scikit-learn stops after {theirs.n_iter_} iterations, {gain:.1f} nats short of the optimum")
print(f"its BIC of three clusters is {theirs.bic(x):.1f}, ours {ours.bic(x):.1f}")

# How many clusters? By BIC, and by the density of rows left out.
auto = GaussianMixture("auto", covariance_type="tied", random_state=0).fit(x)
print("\n" + auto.search_table_[["n_components", "log_likelihood", "bic"]].head(3).round(2).to_string())
grid = GridSearchCV(GaussianMixture(random_state=0), {"n_components": [1, 2, 3]}, cv=5).fit(x)
print(f"by cross-validation: {grid.best_params_}")

# Columns in minutes and in hours: in a pipeline as everywhere.
pipeline = make_pipeline(StandardScaler(), KMeans(2, random_state=0)).set_output(transform="pandas")
print("\n" + pipeline.fit_transform(x).head(3).round(2).to_string())

# The claims: more likelihood than theirs, another number of clusters by BIC, the same k-means.
reference = sklearn.cluster.KMeans(2, n_init=10, random_state=0).fit(x)
assert gain > 5
assert len(auto.weights_) == 3
assert abs(KMeans(2, n_init=10, random_state=0).fit(x).inertia_ / reference.inertia_ - 1) < 1e-9
