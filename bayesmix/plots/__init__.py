"""What does it look like? One function a figure, on Matplotlib.

A mixture and data:

    `plot_clusters(mixture, x)`         what each point's responsibilities are, and the law behind it
    `plot_density(mixture, x)`          the density by itself, as contours or a curve
    `plot_hills(mixture)`               the same as a surface
    `plot_classification(mixture, x)`   which cluster each point goes to
    `plot_uncertainty(mixture, x)`      and how doubtful that is

A fit, and how it was chosen:

    `plot_objective(fit)`               how each start got where it is
    `plot_kmeans_limit(fits, kmeans, x)`
                                        soft becomes hard as the sphere shrinks
    `plot_search(search)`               which number of clusters and which structure, a curve per structure
    `plot_criterion(fits)`              the same of fits that you made
    `plot_centres(search)`              how many centres for k-means
    `plot_merging(hierarchy)`           which clusters merge, and where the entropy has its elbow
    `plot_merge_likelihood(mixture, x)` would one Gaussian do for two of them
    `plot_check(check)`                 the data's distances and distribution beside simulated ones
    `plot_intervals(draws, fit)`        how sure the weights and means are

A prior and a posterior:

    `plot_prior(draws, x)`              what a prior believes of data, beside the data
    `plot_density_band(posterior)`      the posterior predictive density with its credible band
    `plot_relabelling(before, after)`   labels that switch, and the same draws relabelled
    `plot_coclustering(matrix, partition)`
                                        which points are together, and in how many draws

And `plot_structures()`, what mclust's letters for covariances mean.

Each function takes `ax=` and returns the Axes that it drew on; without `ax` it makes a new figure. Nothing
is estimated here. A cluster keeps one colour and one marker in every panel; a point's colour is the mixture
of its clusters' colours, weighted by its responsibilities.
"""

from bayesmix.plots.allocations import plot_coclustering
from bayesmix.plots.checks import plot_check
from bayesmix.plots.classes import plot_classification, plot_uncertainty
from bayesmix.plots.clusters import MOST_FEATURES, plot_clusters
from bayesmix.plots.fits import plot_criterion, plot_objective
from bayesmix.plots.hills import plot_density, plot_hills
from bayesmix.plots.intervals import plot_intervals
from bayesmix.plots.limit import plot_kmeans_limit
from bayesmix.plots.merging import plot_merge_likelihood, plot_merging
from bayesmix.plots.posterior import plot_density_band, plot_relabelling
from bayesmix.plots.priors import plot_prior
from bayesmix.plots.search import plot_centres, plot_search
from bayesmix.plots.structures import plot_structures
from bayesmix.plots.style import COLORS, MARKERS

__all__ = [
    "COLORS",
    "MARKERS",
    "MOST_FEATURES",
    "plot_centres",
    "plot_check",
    "plot_classification",
    "plot_clusters",
    "plot_coclustering",
    "plot_criterion",
    "plot_density",
    "plot_density_band",
    "plot_hills",
    "plot_intervals",
    "plot_kmeans_limit",
    "plot_merge_likelihood",
    "plot_merging",
    "plot_objective",
    "plot_prior",
    "plot_relabelling",
    "plot_search",
    "plot_structures",
    "plot_uncertainty",
]
