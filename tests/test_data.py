"""The door for tables: the same numbers whatever they come in, names out, and one error that names what is wrong."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import bayesmix as bm
from bayesmix.inputs import as_points
from bayesmix.problem import problem_of

NAMES = ("a", "b")
X = np.array([[1.0, 2.5], [3.0, -4.0], [0.5, 6.0], [2.0, 1.0]])
MIXTURE = bm.GaussianMixture.of(
    [0.4, 0.6], [[1, 2], [3, 0]], [[1, 4], [2, 9]], covariance="VVI", feature_names=NAMES
)
FRAME = pd.DataFrame(X, columns=list(NAMES))

TABLES = {
    "pandas": lambda x: pd.DataFrame(x, columns=list(NAMES), index=list("pqrs")),
    "pandas nullable": lambda x: pd.DataFrame(x, columns=list(NAMES)).astype("Float64"),
    "pandas by arrow": lambda x: pd.DataFrame(x, columns=list(NAMES)).astype("double[pyarrow]"),
    "pandas sparse": lambda x: pd.DataFrame(x, columns=list(NAMES)).astype(pd.SparseDtype(float, 0.0)),
    "pandas objects": lambda x: pd.DataFrame(x, columns=list(NAMES)).astype(object),
    "polars": lambda x: pl.DataFrame(x, schema=list(NAMES)),
    "arrow": lambda x: pa.table({"a": x[:, 0], "b": x[:, 1]}),
    "arrow batch": lambda x: pa.table({"a": x[:, 0], "b": x[:, 1]}).to_batches()[0],
    "arrow in chunks": lambda x: pa.concat_tables([pa.table({"a": part[:, 0], "b": part[:, 1]}) for part in (x[:1], x[1:])]),
    "xarray": lambda x: xr.DataArray(x, dims=("obs", "feature"), coords={"feature": list(NAMES)}),
    "xarray turned": lambda x: xr.DataArray(x.T, dims=("feature", "obs"), coords={"feature": list(NAMES)}),
    "xarray data set": lambda x: xr.Dataset({"a": ("obs", x[:, 0]), "b": ("obs", x[:, 1])}),
    "structured": lambda x: np.rec.fromarrays(x.T, names="a,b"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_every_table_is_the_same_numbers_with_names(kind):
    values, names, _ = as_points(TABLES[kind](X))
    assert_array_equal(values, X)
    assert values.dtype == np.float64
    assert names == NAMES
    assert_array_equal(MIXTURE.log_density(TABLES[kind](X)), MIXTURE.log_density(X))


@pytest.mark.parametrize(
    "kind", ["pandas", "pandas nullable", "polars", "arrow", "xarray", "xarray data set", "structured"]
)
def test_single_precision_survives_where_every_column_has_it(kind):
    x = X.astype(np.float32)
    table = FRAME.astype("Float32") if kind == "pandas nullable" else TABLES[kind](x)
    assert as_points(table).values.dtype == np.float32
    assert as_points(FRAME.astype({"a": "float32"})).values.dtype == np.float64
    assert as_points(FRAME.astype({"a": "float32", "b": "int8"})).values.dtype == np.float64


GAPS = {
    "NaN": FRAME.where(X > 0),
    "NA": FRAME.astype("Float64").mask(X < 0),
    "None": FRAME.astype(object).mask(X < 0, None),
    "polars null": pl.DataFrame({"a": X[:, 0], "b": [2.5, None, 6.0, 1.0]}),
    "polars integers": pl.DataFrame({"a": [1, 2, 3, 4], "b": [2, None, 6, 1]}),
    "polars truth": pl.DataFrame({"a": [1, 2, 3, 4], "b": [True, None, True, False]}),
    "arrow null": pa.table({"a": X[:, 0], "b": pa.array([2, None, 6, 1], pa.int8())}),
    "xarray": xr.DataArray(np.where(X > 0, X, np.nan), dims=("o", "f"), coords={"f": list(NAMES)}),
    "masked records": np.ma.array(np.rec.fromarrays(X.T, names="a,b"), mask=[(0, 0), (0, 1), (0, 0), (0, 0)]),
}


@pytest.mark.parametrize("kind", GAPS)
def test_a_gap_is_a_missing_value(kind):
    with pytest.raises(
        ValueError, match=r"^x has a missing value in row 1, column 'b' \(1 of 4 rows are affected\); drop or"
    ):
        bm.fit(bm.MixtureModel(2), GAPS[kind])


def test_an_xarray_array_without_a_coordinate_is_a_plain_array():
    for array in (xr.DataArray(X), xr.DataArray(X.T, dims=("feature", "obs"))):
        assert_array_equal(as_points(array).values, X)
        assert as_points(array).names == ("x0", "x1")
        assert as_points(array.astype(np.float32)).values.dtype == np.float32
        assert_array_equal(MIXTURE.log_density(array), MIXTURE.log_density(X))
        with pytest.raises(ValueError, match="a missing value in row 1, column 'x1'"):
            as_points(array.where(array > 0))
    with pytest.raises(ValueError, match=r"column 'x1'.*row 0 holds 'u'"):
        as_points(xr.DataArray(np.array([[1, "u"]], dtype=object)))
    with pytest.raises(ValueError, match="x is empty"):
        as_points(xr.DataArray(np.empty((3, 0))))


def test_masked_arrays():
    masked = np.ma.array(X.astype(np.float32), mask=X < 0)
    with pytest.raises(ValueError, match="a missing value in row 1, column 'x1'"):
        as_points(masked)
    with pytest.raises(ValueError, match="a missing value in row 1, column 'x1'"):
        as_points(np.ma.array(X.astype(int), mask=X < 0))
    with pytest.raises(ValueError, match="a missing value in row 1, column 'x1'"):
        as_points(np.ma.array(X.astype(object), mask=X < 0))
    assert_array_equal(as_points(np.ma.array(X, mask=False)).values, X)


def test_one_error_names_every_column():
    frame = FRAME.assign(
        when=pd.to_datetime(["2020-01-01"] * 4), kind=pd.Categorical([1, 2, 1, 2]), text=["u", "v", "1", "2"],
        some=[1, "two", 3, 4], gap=[1, np.nan, 3, np.nan], far=[1, 2, np.inf, 4], wave=[1j] * 4, span=pd.to_timedelta([1] * 4),
    )  # fmt: skip
    with pytest.raises(ValueError) as caught:
        bm.search(frame, n_components=2, covariance="VVI")
    message = str(caught.value)
    for part in (
        "column 'when' (datetime64", "column 'kind' (category)", "column 'text' (", "column 'some' (row 1 holds 'two')",
        "column 'wave' (complex128)", "column 'span' (timedelta64", "a missing value in row 1, column 'gap' (2 of 4 rows",
        "an infinite value (inf) in row 2, column 'far'", "drop or encode such columns and drop or impute such rows",
    ):  # fmt: skip
        assert part in message
    assert "column 'a'" not in message
    for table, kind in (
        (pl.DataFrame({"a": ["u"], "b": [1]}), "String"),
        (pl.DataFrame({"a": [[1, 2]], "b": [1]}), "List"),
        (pa.table({"a": pa.array(["u"]).dictionary_encode(), "b": [1]}), "dictionary"),
    ):
        with pytest.raises(
            ValueError, match=rf"x is not numeric: column 'a' \({kind}.*\); drop or encode such columns$"
        ):
            as_points(table)


ODD = {
    "twice": (pd.DataFrame([[1, 2]], columns=["a", "a"]), "several columns called 'a'"),
    "twice as text": (pd.DataFrame([[1, 2]], columns=[1, "1"]), "several columns called '1'"),
    "lazy": (pl.DataFrame({"a": [1]}).lazy(), r"LazyFrame.*call \.collect\(\) first"),
    "data set": (xr.Dataset({"a": (("o", "f"), X)}), "no columns over one dimension"),
    "tree": (xr.DataTree(), "a DataTree; pass the array"),
    "no rows": (pd.DataFrame({"a": []}), "x is empty"),
    "no columns": (pd.DataFrame(index=[1, 2]), "x is empty"),
    "cube": (xr.DataArray(np.zeros((1, 1, 1))), "points by features"),
    "dates": (np.array(["2020"], "M8[D]"), "x is not numeric"),
    "spans": (np.array([[1]], "m8[D]"), "x is not numeric"),
    "field of vectors": (
        np.zeros(3, [("a", "f8", (2,)), ("b", "f8")]),
        r"'a' has shape \(3, 2\); a row is one record",
    ),
    "field of fields": (
        np.zeros(3, [("a", [("c", "f8")]), ("b", "f8")]),
        r"column 'a' \(\[\('c', '<f8'\)\]\)",
    ),
    "records in two axes": (np.zeros((3, 1), [("a", "f8")]), r"'a' has shape \(3, 1\); a row is one record"),
    **{
        f"cell of {type(cell).__name__}": (
            np.array([[1.0, 2], [3, cell]], object),
            r"column 'x1' \(row 1 holds",
        )
        for cell in (1j, np.complex64(1j), np.datetime64(9, "ns"), np.timedelta64(9, "ns"), pd.Timestamp(0))
    },
    "beyond float64": (np.full((1, 2), np.longdouble("1e400")), "an infinite value"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_tables_are_one_error(kind):
    table, message = ODD[kind]
    with pytest.raises(ValueError, match=message):
        as_points(table)


@pytest.mark.parametrize("dtype", ["bool", "boolean", "bool[pyarrow]", "Sparse[bool]", "object"])
def test_truth_is_zero_or_one(dtype):
    frame = pd.DataFrame({"a": [True, False], "b": [False, False]}).astype(dtype)
    assert_array_equal(as_points(frame).values, [[1, 0], [0, 0]])


def test_names_of_several_levels_and_of_one_column():
    assert as_points(
        pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")]))
    ).names == ("a.x", "a.y")
    assert as_points(pd.DataFrame([[1, 2]])).names == ("0", "1")
    assert as_points(FRAME["b"]).names == ("b",)
    assert as_points(pl.Series([1.0])).names == ("x0",)
    assert as_points(pa.chunked_array([[1, 2], [3]])).values.shape == (3, 1)


def test_columns_are_taken_by_name():
    expected = MIXTURE.responsibilities(X)
    for table in (
        FRAME,
        FRAME[["b", "a"]],
        pl.DataFrame(FRAME)[["b", "a"]],
        pa.Table.from_pandas(FRAME[["b", "a"]]),
    ):
        assert_array_equal(MIXTURE.responsibilities(table), expected)
        assert_array_equal(
            MIXTURE.highest_density_region(0.5).contains(table),
            MIXTURE.highest_density_region(0.5).contains(X),
        )
    for table in (
        FRAME.rename(columns={"b": "c"}),
        FRAME[["a"]],
        FRAME.assign(c=1),
        FRAME[["b", "a"]].assign(c=1),
    ):
        with pytest.raises(
            ValueError, match=r"x has other columns than the features 'a', 'b': it lacks|is none of them"
        ):
            MIXTURE.log_density(table)
    unnamed = bm.GaussianMixture(
        MIXTURE.weights, MIXTURE.means, MIXTURE.covariance, ("x0", "x1")
    )  # as fitted to an array
    assert_array_equal(unnamed.responsibilities(FRAME), expected)
    assert_array_equal(
        unnamed.responsibilities(FRAME.set_axis(["x1", "x0"], axis=1)[["x0", "x1"]]),
        unnamed.responsibilities(X[:, ::-1]),
    )


def test_a_refit_takes_its_data_by_name():
    x = bm.datasets.load("old_faithful")
    fit = bm.fit(bm.MixtureModel(2, "VVI"), x)
    problem = problem_of(fit, x[["waiting", "eruptions"]], None)
    assert_array_equal(problem.points, x)
    assert problem.names == ("eruptions", "waiting")
    with pytest.raises(ValueError, match="x has other columns than the features 'eruptions', 'waiting'"):
        bm.bootstrap(fit, x.rename(columns=str.upper), key=0, n_draws=4)
    assert list(fit.mixture.summary().columns) == [
        "weight",
        "mean eruptions",
        "mean waiting",
        "sd eruptions",
        "sd waiting",
    ]


def test_a_frame_in_gives_a_frame_out_on_request():
    for kind, library in (
        ("pandas", pd.DataFrame),
        ("polars", pl.DataFrame),
        ("arrow", pa.Table),
        ("xarray", pd.DataFrame),
    ):
        table = TABLES[kind](X)
        density, r, cluster = (
            f(table, as_frame=True) for f in (MIXTURE.log_density, MIXTURE.responsibilities, MIXTURE.classify)
        )
        assert isinstance(density, library)
        assert isinstance(r, library)
        assert isinstance(cluster, library)
        assert_array_equal(np.asarray(density["log_density"]), MIXTURE.log_density(X))
        assert_array_equal(np.asarray(r["cluster_1"]), MIXTURE.responsibilities(X)[:, 1])
        assert_array_equal(np.asarray(cluster["cluster"]), MIXTURE.classify(X))
    assert list(MIXTURE.classify(TABLES["pandas"](X), as_frame=True).index) == list("pqrs")
    assert isinstance(MIXTURE.classify(X), np.ndarray)
    assert isinstance(MIXTURE.classify(FRAME), np.ndarray)
    import jax

    with pytest.raises(ValueError, match="as_frame"):
        jax.jit(lambda x: MIXTURE.log_density(x, as_frame=True))(X)


NUMBERS = [
    "f8",
    "f4",
    "f2",
    "g",
    ">f8",
    "<f4",
    "i1",
    "u1",
    "i8",
    "u8",
    "?",
    "O",
    "Int64",
    "Float32",
    "boolean",
]
WHOLE = st.one_of(st.integers(0, 1), st.integers(-100, 100), st.floats(-50, 50, width=16))
CELLS = {True: st.one_of(WHOLE, st.sampled_from([np.nan, np.inf])), False: WHOLE}  # with gaps, and without


@st.composite
def frames(draw):
    """A frame of random columns, and the float64 array that says the same."""
    n, d = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    names = draw(st.lists(st.text(max_size=3) | st.integers(0, 9), min_size=d, max_size=d, unique_by=str))
    gaps = draw(st.booleans())
    columns, plain = [], np.empty((n, d))
    for j in range(d):
        dtype = draw(st.sampled_from(NUMBERS))
        cells = np.array(draw(st.lists(CELLS[gaps], min_size=n, max_size=n)), float)
        whole = (
            np.dtype(dtype).kind in "iub"
            if dtype not in ("Int64", "Float32", "boolean")
            else dtype != "Float32"
        )
        if whole:
            low = 0 if dtype in ("u1", "u8", "?", "boolean") else -100
            high = 1 if dtype in ("?", "boolean") else 100
            cells = np.clip(np.nan_to_num(np.round(cells), posinf=high), low, high)
        column = pd.Series(cells.astype(dtype if dtype not in ("Int64", "Float32", "boolean") else float))
        if dtype in ("Int64", "Float32", "boolean"):
            column = column.astype(dtype)
            if gaps and draw(st.booleans()):
                column[0] = pd.NA
                cells[0] = np.nan
        columns.append(column)
        plain[:, j] = (
            column.astype(float).to_numpy(float, na_value=np.nan)
            if dtype not in ("g", ">f8", "<f4", "O")
            else cells
        )
    frame = pd.concat(columns, axis=1, keys=names) if d > 1 else columns[0].to_frame(names[0])
    frame.columns = pd.Index(names, dtype=object)
    return frame, plain


@settings(max_examples=150, deadline=None, derandomize=True)
@given(frames(), st.sampled_from(["C", "F", "reversed", "strided", "read only"]))
def test_any_frame_is_the_plain_array_or_one_error(pair, layout):
    frame, plain = pair
    names = tuple(str(name) for name in frame.columns)
    arrays = {
        "C": plain, "F": np.asfortranarray(plain), "reversed": plain[::-1].copy()[::-1],
        "strided": np.repeat(plain, 2, axis=1)[:, ::2], "read only": plain.copy(),
    }  # fmt: skip
    arrays[layout].flags.writeable = False
    before = frame.copy()
    if np.isfinite(plain).all():
        values, found, _ = as_points(frame)
        assert found == names
        assert_array_equal(values, plain)
        assert_array_equal(as_points(arrays[layout]).values, plain)
        assert values.flags.c_contiguous
        turned = frame.iloc[:, ::-1]
        if names != tuple(f"x{j}" for j in range(len(names))):
            assert_array_equal(as_points(turned, known=names).values, plain)
    else:
        bad = [name for name, column in zip(names, plain.T) if not np.isfinite(column).all()]
        with pytest.raises(ValueError, match=r"^x has an? (missing|infinite) value") as caught:
            as_points(frame)
        assert [name for name in names if f"column {name!r}" in str(caught.value)] == bad
        with pytest.raises(ValueError, match=r"^x has an? (missing|infinite) value"):
            as_points(arrays[layout])
    pd.testing.assert_frame_equal(frame, before, check_dtype=False)  # a copy takes the machine's byte order
