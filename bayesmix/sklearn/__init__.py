"""scikit-learn estimators: `GaussianMixture` and `KMeans` take the place of scikit-learn's, `BayesianMixture` averages
over the posterior.

They check as scikit-learn does, call `fit`, `search`, `kmeans` or `sample_posterior`, and name the results as
scikit-learn does; what those return is kept as `fit_` and `posterior_`. Install with `pip install 'bayesmix[sklearn]'`.
"""

try:
    import sklearn as _sklearn  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "sklearn":
        raise
    raise ImportError("bayesmix.sklearn needs scikit-learn: pip install 'bayesmix[sklearn]'") from None

from bayesmix.sklearn.bayesian import BayesianMixture
from bayesmix.sklearn.centers import KMeans
from bayesmix.sklearn.gaussian import GaussianMixture

__all__ = ["BayesianMixture", "GaussianMixture", "KMeans"]
