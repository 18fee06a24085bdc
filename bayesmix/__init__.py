"""bayesmix: Gaussian mixtures as an explicit generative model, on JAX, NumPyro and ArviZ."""

import lazy_loader

__version__ = "0.1.0"
# The public names are those of `__init__.pyi`. Each loads its module when it is first asked for: half of the modules
# are nothing to a fit, `plots` brings matplotlib and `sklearn` scikit-learn, which no `import *` is to load.
__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted({*_names} - {"plots", "sklearn"})  # pyright: ignore[reportUnsupportedDunderAll]
