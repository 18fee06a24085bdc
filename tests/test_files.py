"""Files: every bit comes back, and a file that is cut, altered, foreign or hostile is one clear error."""

import gzip
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from cases import FEW, data, fitted, mixture
from numpy.testing import assert_array_equal

import bayesmix as bm
from bayesmix.files import _FIT
from bayesmix.trees import mixture_tree


def same(a, b):
    """Of the same type and, to the last bit, value."""
    if isinstance(a, bm.GaussianMixture):
        assert (a.structure, a.feature_names) == (b.structure, b.feature_names)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if isinstance(one, str):
            assert one == other
            continue
        assert np.asarray(one).dtype == np.asarray(other).dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def odd_fit():
    """A fit with everything that a fit may have."""
    fit = fitted("VVV")
    m = replace(mixture("VVV"), feature_names=("a", 'ö "quoted"', "\ud800 alone"))
    prior = bm.ConjugatePrior.of(
        mean=[0.1, -0.0, 1e-310], degrees_of_freedom=4.1, scale=np.eye(3) / 3, concentration=[1.0, 0.1, 3.0]
    )
    objective = np.array([-np.inf, np.nan, -1 / 3, np.inf])
    return replace(fit, mixture=m, objective=objective, prior=prior, best_visited=mixture("VVI"),
                   inertia=1e-300, hold=("weights",), log_likelihood=float("nan"), n_redraws=3)  # fmt: skip


FITS = {
    "full": lambda: fitted("VVV"),
    "one feature": lambda: fitted("V"),
    "k-means": lambda: bm.kmeans(data("VVV")[0], 2),
    "k-means without spread": lambda: bm.kmeans(np.repeat([[0.0, 0.0], [1.0, 1.0]], 20, axis=0), 2),
    "float32": lambda: bm.fit(bm.MixtureModel(2, "VVI"), data("VVI")[0].astype(np.float32), max_steps=3),
    "everything": odd_fit,
}


@pytest.mark.parametrize("case", FITS)
def test_a_fit_comes_back_to_the_last_bit(tmp_path, case):
    fit = FITS[case]()
    fit.save(tmp_path / "fit.json")
    back = bm.load(tmp_path / "fit.json")
    for field in fields(bm.Fit):
        same(getattr(fit, field.name), getattr(back, field.name))
    assert back.summary().equals(fit.summary())
    assert os.listdir(tmp_path) == ["fit.json"]
    bm.load(tmp_path / "fit.json").save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "fit.json").read_bytes()
    with pytest.raises(ValueError, match="is not a mixture but a Fit"):
        bm.GaussianMixture.load(tmp_path / "fit.json")


def test_every_field_of_a_fit_is_kept():
    assert set(_FIT) == {field.name for field in fields(bm.Fit)}


def tree():
    """Draws of a mixture, small."""
    rng = np.random.default_rng(0)
    m = mixture("VVV")
    batch = jax.tree.map(
        lambda a: np.stack([a * (1 + rng.uniform(0, 1e-3, a.shape)) for _ in range(4)])[None], m
    )
    batch = replace(batch, feature_names=("a", "b", "ö"))
    return mixture_tree(
        batch, {"lp": rng.normal(size=(1, 4)), "clean": np.ones((1, 4), bool)}, {"method": "made"}
    )


def test_a_posterior_comes_back_and_other_programs_read_it(tmp_path):
    import xarray

    draws = tree()
    bm.save(draws, tmp_path / "draws.nc")
    assert bm.load(tmp_path / "draws.nc").identical(draws)
    with xarray.open_datatree(tmp_path / "draws.nc", engine="h5netcdf") as other:
        assert other["posterior"].to_dataset().identical(draws["posterior"].to_dataset())
    draws.to_netcdf(tmp_path / "plain.nc", engine="h5netcdf")
    assert bm.load(tmp_path / "plain.nc").identical(draws)
    assert sorted(os.listdir(tmp_path)) == ["draws.nc", "plain.nc"]


def test_a_posterior_is_a_zarr_store_where_its_name_says_so(tmp_path):
    import xarray
    import zarr

    draws = tree()
    draws["posterior"] = (
        draws["posterior"].to_dataset().assign_coords(feature=np.array(["a", "b", "ö"], object))
    )
    for _ in range(2):  # the second takes the place of the first
        bm.save(draws, tmp_path / "draws.zarr")
        assert bm.load(tmp_path / "draws.zarr").identical(draws)
    other = zarr.open_group(tmp_path / "draws.zarr", mode="r")
    assert_array_equal(other["posterior/means"][:], draws["posterior"]["means"])
    draws = tree()
    draws.to_zarr(tmp_path / "plain.zarr", consolidated=False)
    assert bm.load(tmp_path / "plain.zarr").identical(draws)
    (tmp_path / "kept.zarr").mkdir()
    with pytest.raises(ValueError, match="no Zarr store: it is left as it is"):
        bm.save(draws, tmp_path / "kept.zarr")
    assert sorted(os.listdir(tmp_path)) == ["draws.zarr", "kept.zarr", "plain.zarr"]
    with xarray.open_datatree(tmp_path / "draws.zarr", engine="zarr", consolidated=False) as opened:
        assert opened["posterior"].attrs["method"] == "made"


def test_a_store_that_cannot_be_replaced_is_not_lost(tmp_path, monkeypatch):
    draws, real = tree(), Path.rename
    bm.save(draws, tmp_path / "draws.zarr")

    def rename(self, target):
        if self.name.endswith(".part"):
            raise OSError("no place")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="no place"):
        bm.save(draws, tmp_path / "draws.zarr")
    assert bm.load(tmp_path / "draws.zarr").identical(draws)
    assert os.listdir(tmp_path) == ["draws.zarr"]


def _hostile_stores(folder):
    """What looks like a store of ours, by what is wrong with it, and the words that say so."""
    bm.save(tree(), folder / "good.zarr")

    def store(name, change):
        made = folder / f"{name}.zarr"
        shutil.copytree(folder / "good.zarr", made)
        change(made)
        return made

    def edited(**fields):
        def change(made):
            place = made / "posterior" / "means" / "zarr.json"
            place.write_text(json.dumps(json.loads(place.read_text()) | fields))

        return change

    def unsealed(change):
        def both(made):
            change(made)
            without(made, "bayesmix_sealed", "bayesmix_sha256")

        return both

    def without(made, *names):
        top = made / "zarr.json"
        node = json.loads(top.read_text())
        for name in names:
            node["attributes"].pop(name)
        top.write_text(json.dumps(node))

    def chunk(made):
        return next(
            place
            for place in (made / "posterior" / "means").rglob("*")
            if place.is_file() and place.name != "zarr.json"
        )

    def flipped(made):
        raw = bytearray(chunk(made).read_bytes())
        raw[-3] ^= 1
        chunk(made).write_bytes(raw)

    def linked(made):
        place = chunk(made)
        place.rename(folder / "elsewhere")
        place.symlink_to(folder / "elsewhere")

    pickled = [{"name": "numcodecs.pickle", "configuration": {}}]
    bomb = b"\x28\xb5\x2f\xfd\xe0" + (2**40).to_bytes(8, "little") + bytes(20)
    grid = {"name": "regular", "configuration": {"chunk_shape": [2**20, 2**20, 3, 3]}}
    changes = {
        "altered": (flipped, "its sha256 is another"),
        "altered, unsealed": (unsealed(flipped), ""),
        "no seal": (lambda made: without(made, "bayesmix_sha256"), "sha256 is missing"),
        "a chunk less": (lambda made: chunk(made).unlink(), "sha256 is another"),
        "a chunk less, unsealed": (unsealed(lambda made: chunk(made).unlink()), "no finite numbers"),
        "link": (linked, "is a link"),
        "pickle": (unsealed(edited(codecs=pickled)), "not read here"),
        "huge": (unsealed(edited(shape=[2**40, 2**40, 3, 3])), "more bytes than the store can hold"),
        "huge piece": (unsealed(edited(chunk_grid=grid)), "more bytes than the store can hold"),
        "negative": (unsealed(edited(shape=[-1, 4, 3, 3])), "has no shape"),
        "bomb": (unsealed(lambda made: chunk(made).write_bytes(bomb)), "another size"),
        "objects": (unsealed(edited(data_type="object")), "not read here"),
        "long texts": (unsealed(edited(data_type={"name": "fixed_length_utf32", "configuration": {"length_bytes": 2**60}})), "more bytes"),
        "version 2": (unsealed(edited(zarr_format=2)), "not of version 3"),
        "no node": (unsealed(edited(node_type="thing")), "neither an array nor a group"),
        "no JSON": (unsealed(lambda made: (made / "posterior" / "zarr.json").write_text("{")), ""),
        "no dictionary": (unsealed(lambda made: (made / "posterior" / "means" / "zarr.json").write_text("[]")), "not of version 3"),
        "no codecs": (unsealed(edited(codecs=[])), "not read here"),
        "no posterior": (unsealed(lambda made: shutil.rmtree(made / "posterior")), "neither a group"),
        "no means": (unsealed(lambda made: shutil.rmtree(made / "posterior" / "means")), ""),
    }  # fmt: skip
    return {name: (store(name, change), words) for name, (change, words) in changes.items()}


def test_hostile_stores_are_one_clear_error_each(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, (store, words) in _hostile_stores(tmp_path).items():
        with pytest.raises(ValueError, match="is not a mixture, fit or posterior") as caught:
            bm.load(store)
        message = str(caught.value)
        assert words in message, (name, message)
        assert "\n" not in message, (name, message)
        assert len(message) < 600, (name, message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_another_language_can_write_and_read_the_text(tmp_path):
    path = tmp_path / "m.json"
    by_hand = {"format": "bayesmix.GaussianMixture", "version": 1, "dtype": "float64", "covariance": "VVI",
               "feature_names": None, "weights": [0.5, 0.5], "means": [[0, 0], [4, 4.5]], "covariances": [[1, 2], [1, 1]]}  # fmt: skip
    path.write_text(json.dumps(by_hand))
    m = bm.load(path)
    assert_array_equal(m.covariances[0], np.diag([1.0, 2.0]))
    m.save(path)
    text = path.read_bytes()
    assert json.loads(text, parse_constant=pytest.fail)["means"] == [[0, 0], [4, 4.5]]
    # As docs/files.md says: the digest is of the bytes with its own digits replaced by zeros.
    import hashlib

    digest = json.loads(text)["sha256"]
    assert hashlib.sha256(text.replace(digest.encode(), b"0" * 64)).hexdigest() == digest
    path.write_text(json.dumps({**by_hand, "covariances": [[1, -2], [1, 1]]}))
    with pytest.raises(ValueError, match="not positive definite"):
        bm.load(path)


class Bomb:
    """What a pickle would run."""

    def __reduce__(self):
        return (os.mkdir, ("executed",))


def hostile():
    """A hundred files and more, by name: the bytes of each."""
    rng = np.random.default_rng(1)
    good = {}
    for name, result in (("mixture", mixture("VVV")), ("fit", odd_fit()), ("tree", tree())):
        bm.save(result, name)
        with open(name, "rb") as file:
            good[name] = file.read()
    tree().to_netcdf("plain", engine="h5netcdf")
    with open("plain", "rb") as file:
        plain = file.read()
    files = {}
    for name, raw in good.items():
        for i, place in enumerate(rng.integers(1, len(raw) - 2, size=10).tolist()):
            files[f"{name} cut {i}"] = raw[:place]
        for i, place in enumerate(rng.integers(len(raw), size=15).tolist()):
            files[f"{name} flipped {i}"] = raw[:place] + bytes([raw[place] ^ 1 << i % 8]) + raw[place + 1 :]
    for i, place in enumerate(rng.integers(1, len(plain) - 1, size=5).tolist()):
        files[f"plain cut {i}"] = plain[:place]
    text = {key: json.loads(good[key]) for key in ("mixture", "fit")}
    for key in text:
        del text[key]["sha256"]
        for name, change in {
            "next version": {"version": 2}, "version as text": {"version": "1"}, "version true": {"version": True},
            "format": {"format": "other"}, "no format": {"format": None}, "more": {"n_components": 10**15},
        }.items():  # fmt: skip
            files[f"{key}, {name}"] = json.dumps({**text[key], **change}).encode()
    for name, change in {
        "dtype": {"dtype": "object"}, "dtype of a size": {"dtype": "V1000000000"}, "structure": {"covariance": "XXX"},
        "names": {"feature_names": ["a"]}, "names as numbers": {"feature_names": [1, 2, 3]},
        "weights": {"weights": [0.5, 0.5]}, "sum": {"weights": [0.5, 0.5, 0.5]}, "negative": {"weights": [-0.5, 1, 0.5]},
        "ragged": {"means": [[0, 0, 0], [1, 1], [2, 2, 2]]}, "flat": {"means": [0, 0, 0]}, "empty": {"means": []},
        "empty row": {"means": [[], [], []]}, "text": {"means": [["a", 0, 0]] * 3}, "NaN": {"means": [["NaN", 0, 0]] * 3},
        "true": {"means": [[True, 0, 0]] * 3}, "huge": {"means": [[10**400, 0, 0]] * 3}, "null": {"means": None},
        "object": {"means": {"0": [0, 0, 0]}}, "deeper": {"means": [[[0], [0], [0]]] * 3},
        "indefinite": {"covariances": [[[1, 2, 0], [2, 1, 0], [0, 0, 1]]] * 3},
        "crooked": {"covariances": [[[1, 0.5, 0], [0, 1, 0], [0, 0, 1]]] * 3},
    }.items():  # fmt: skip
        files[f"mixture, {name}"] = json.dumps({**text["mixture"], **change}).encode()
    for name, change in {
        "labels": {"labels": [0, 1, 7]}, "labels with fractions": {"labels": [0.5]}, "code": {"code": 77},
        "steps": {"n_steps": -1}, "objective": {"objective": ["nan"]}, "status": {"status": 1}, "hold": {"hold": ["all"]},
        "prior": {"prior": {"mean": [0]}}, "prior of another size": {"prior": text["fit"]["prior"] | {"concentration": [1, 1]}},
        "mixture": {"mixture": None}, "negative variance": {"mixture": text["fit"]["mixture"] | {"covariances": [(-np.eye(3)).tolist()] * 3}},
        "number": {"entropy": "1"},
    }.items():  # fmt: skip
        files[f"fit, {name}"] = json.dumps({**text["fit"], **change}).encode()
    whole = good["mixture"].decode()
    files |= {
        "nothing": b"", "null": b"null", "list": b"[1]", "a number": b"1", "nested": b"[" * 10**6, "nested objects": b'{"a":' * 10**5,
        "nested inside": b'{"format": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
        "twice": whole.replace('"version": 1', '"version": 1, "version": 1').encode(),
        "constant": json.dumps({**text["mixture"], "means": [[float("nan")] * 3] * 3}).encode(),
        "infinity": json.dumps({**text["mixture"], "means": [[float("inf")] * 3] * 3}).encode(),
        "large": json.dumps({**text["mixture"], "means": 0}).replace('"means": 0', '"means": 1e999').encode(),
        "digits": b'{"format": ' + b"9" * 10**5 + b"}", "latin": whole.encode().replace(b"VVV", b"\xe9\xff"),
        "utf 16": whole.encode("utf-16"), "mark": b"\xef\xbb\xbf" + whole.encode(), "zeros": bytes(10**4),
        "pickle": pickle.dumps(Bomb()), "old pickle": pickle.dumps(Bomb(), 0), "gzip": gzip.compress(whole.encode()),
        "HDF5 only in name": b"\x89HDF\r\n\x1a\n" + rng.bytes(5000), "netCDF 3": b"CDF\x01" + rng.bytes(500),
        "checkpoint": b"bayesmix.checkpoint 1\n{}\n", "python": b"import os; os.mkdir('executed')\n",
        "NumPy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + b"{'descr': '<f8', 'fortran_order': False, 'shape': (10**15,)}",
    }  # fmt: skip
    files |= _hostile_hdf5()
    return files


def _hostile_hdf5():
    """What is well-formed HDF5, and no posterior of ours."""
    import h5py

    def good(group, skip=()):
        for name, shape in (
            ("weights", (1, 2, 2)),
            ("means", (1, 2, 2, 1)),
            ("covariances", (1, 2, 2, 1, 1)),
        ):
            if name not in skip:
                group.create_dataset(name, data=np.ones(shape))

    def huge(file):
        file.create_group("posterior").create_dataset("weights", (10**7, 10**6), "f8", chunks=(1000, 1000))

    def bomb(file):
        file.create_group("posterior").create_dataset(
            "weights", data=np.zeros((400, 10**6), "i1"), compression="gzip"
        )

    def outside(file):
        file.create_group("posterior")["weights"] = h5py.ExternalLink("mixture", "/")

    def soft(file):
        file.create_group("posterior")["weights"] = h5py.SoftLink("/posterior")

    def cycle(file):
        group = file.create_group("posterior")
        group["posterior"] = group

    def external(file):
        file.create_group("posterior").create_dataset("weights", (8,), "f8", external=[("mixture", 0, 64)])

    def virtual(file):
        layout = h5py.VirtualLayout((8,), "f8")
        layout[:] = h5py.VirtualSource("mixture", "w", (8,))
        file.create_group("posterior").create_virtual_dataset("weights", layout)

    def texts(file):
        file.create_group("posterior")["weights"] = np.array(["x"] * 20_000, h5py.string_dtype())

    makers = {"huge": huge, "bomb": bomb, "link outside": outside, "soft link": soft, "cycle": cycle, "external": external,
              "virtual": virtual, "texts": texts, "no group": lambda file: None, "no means": lambda file: good(file.create_group("posterior"), ("means",))}  # fmt: skip
    found = {}
    for name, make in makers.items():
        with h5py.File("made", "w") as file:
            make(file)
        with open("made", "rb") as file:
            found[f"HDF5, {name}"] = file.read()
    return found


def test_hostile_files_are_one_clear_error_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = hostile()
    assert len(files) >= 150
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, raw in files.items():
        (tmp_path / "file").write_bytes(raw)
        try:
            bm.load("file")
        except ValueError as error:
            message = str(error)
            assert message.startswith("file is not a mixture, fit or posterior that this version"), (
                name,
                message,
            )
            assert "\n" not in message, (name, message)
            assert len(message) < 500, (name, message)
        else:
            pytest.fail(f"{name} was read")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
    assert not (tmp_path / "executed").exists()


def test_what_is_no_file_and_what_cannot_be_saved(tmp_path):
    with pytest.raises(FileNotFoundError):
        bm.load(tmp_path / "none")
    with pytest.raises(ValueError, match="it is a folder"):
        bm.load(tmp_path)
    with pytest.raises(ValueError, match="no regular file"):
        bm.load("/dev/zero")
    (tmp_path / "kept").write_text("kept")
    for result, message in (
        ("a text", "not a str"),
        (jax.tree.map(lambda a: np.stack([a, a]), mixture("VVV")), "this is a batch of mixtures"),
        (replace(mixture("VVV"), means=np.full((3, 3), np.nan)), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            bm.save(result, tmp_path / "kept")
    assert (tmp_path / "kept").read_text() == "kept"
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**28 + 1)  # a hole: nothing is on the disk
    with pytest.raises(ValueError, match="more than 268435456 bytes"):
        bm.load(tmp_path / "large")


def test_without_the_extras_all_but_trees_in_files_works_and_that_says_what_to_install(tmp_path):
    """As in an environment with the core dependencies alone."""
    bm.save(tree(), tmp_path / "draws.nc")
    bm.save(tree(), tmp_path / "draws.zarr")
    code = (
        "import sys\n"
        "for name in ('h5netcdf', 'h5py', 'netCDF4', 'zarr', 'polars', 'pyarrow', 'sklearn', 'graphviz', 'hypothesis'):\n"
        "    sys.modules[name] = None\n"
        "import bayesmix as bm\n"
        "x, z = bm.GaussianMixture.of([0.7, 0.3], [-5.0, 5.0], [1.0, 1.0]).simulate(60, key=0)\n"
        "fit = bm.fit(bm.MixtureModel(2), x)\n"
        "fit.save('fit.json')\n"
        "assert bm.load('fit.json').bic == fit.bic\n"
        "import jax\n"
        "from bayesmix.trees import mixture_tree\n"
        "tree = mixture_tree(jax.tree.map(lambda a: a[None, None], fit.mixture), {}, {})\n"
        "for name in ('draws.nc', 'draws.zarr', 'tree.nc', 'tree.zarr'):\n"
        "    try:\n        bm.load(name) if name[0] == 'd' else bm.save(tree, name)\n"
        "    except ImportError as error:\n        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("h5netcdf is not installed: pip install 'bayesmix[netcdf]'") == 2
    assert done.stdout.count("zarr, which is not installed: pip install 'bayesmix[zarr]'") == 2
    assert sorted(os.listdir(tmp_path)) == ["draws.nc", "draws.zarr", "fit.json"]


@pytest.mark.parametrize("name", FEW)
def test_mixtures_of_every_storage_come_back(tmp_path, name):
    bm.save(mixture(name), tmp_path / "m.json")
    same(mixture(name), bm.load(tmp_path / "m.json"))


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_posterior_of_one_feature_comes_back_as_it_was(tmp_path, suffix):
    options = {"key": 0, "method": "gibbs", "n_chains": 1, "n_warmup": 5, "n_draws": 5}
    draws = bm.sample_posterior(bm.MixtureModel(2, "V", "weak"), bm.datasets.load("galaxies"), **options)
    bm.save(draws, tmp_path / f"draws{suffix}")
    assert bm.load(tmp_path / f"draws{suffix}").identical(draws)
