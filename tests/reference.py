"""Reading the reference results under tests/data, which other software computed."""

import gzip
import json
from functools import cache
from pathlib import Path

import numpy as np

import bayesmix as bm

DATA = Path(__file__).parent / "data"


@cache
def load(name):
    path = DATA / name
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return json.loads(text)


@cache
def rows(dataset):
    """The data a reference was computed on, as a plain array."""
    if dataset in ("faithful", "iris", "galaxies_mass"):
        name = {"faithful": "old_faithful", "iris": "iris", "galaxies_mass": "galaxies"}[dataset]
        return bm.datasets.load(name).to_numpy(dtype=float)
    path = next(DATA.glob(f"{dataset}.csv*"))
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return np.loadtxt(text.decode().splitlines()[1:], delimiter=",")


def one_hot(labels, k):
    return (np.asarray(labels)[:, None] == np.arange(k)).astype(float)
