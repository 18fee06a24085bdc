"""Settings that every test shares: figures are drawn off screen, and JAX keeps its own default precision."""

import os

os.environ.setdefault("MPLBACKEND", "agg")
