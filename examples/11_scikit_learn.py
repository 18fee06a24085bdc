"""In the place of scikit-learn's classes: the same words, an answer that has converged, and k chosen by it.

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

# Three clusters with one covariance: scikit-learn's default tolerance, a strict one, and ours.
options = {"n_components": 3, "covariance_type": "tied", "random_state": 0}
early = sklearn.mixture.GaussianMixture(**options).fit(x)
late = sklearn.mixture.GaussianMixture(**options, tol=1e-10, max_iter=10_000).fit(x)
ours = GaussianMixture(**options).fit(x)
for name, fit in {"scikit-learn": early, "with tol=1e-10": late, "bayesmix": ours}.items():
    print(
        f"{name:15} {fit.n_iter_:4} iterations, log-likelihood {len(x) * fit.score(x):.2f}, BIC {fit.bic(x):.2f}"
    )

# How many clusters? By BIC, and by the density of rows left out.
auto = GaussianMixture("auto", covariance_type="tied", random_state=0).fit(x)
print("\n" + auto.search_table_[["n_components", "log_likelihood", "bic"]].head(3).round(2).to_string())
grid = GridSearchCV(GaussianMixture(random_state=0), {"n_components": [1, 2, 3]}, cv=5).fit(x)
print(f"by cross-validation: {grid.best_params_}")

# Columns in minutes and in hours: in a pipeline as everywhere.
pipeline = make_pipeline(StandardScaler(), KMeans(2, random_state=0)).set_output(transform="pandas")
print("\n" + pipeline.fit_transform(x).head(3).round(2).to_string())

# The claims: theirs stops 14 nats short, after which BIC would choose two clusters; the same k-means.
reference = sklearn.cluster.KMeans(2, n_init=10, random_state=0).fit(x)
two = GaussianMixture(2, covariance_type="tied").fit(x)
assert early.converged_
assert early.bic(x) - late.bic(x) > 28
assert abs(ours.bic(x) - late.bic(x)) < 0.01
assert auto.bic(x) < two.bic(x) < early.bic(x)
assert len(auto.weights_) == 3
assert abs(KMeans(2, n_init=10, random_state=0).fit(x).inertia_ / reference.inertia_ - 1) < 1e-9
