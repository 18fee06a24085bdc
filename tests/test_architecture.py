"""The picture of the package: who may import whom, and who loads what. A module that breaks it fails here."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import bayesmix as bm
from bayesmix.covariance import STRUCTURES
from bayesmix.engines import METHODS
from bayesmix.statistics import RESPONSIBILITIES
from bayesmix.status import CODE, NAME
from bayesmix.storage import STORAGES

ROOT = Path(bm.__file__).parent
LAYERS = (
    ("blocks", "status"),
    ("frames", "documents", "interrupts", "devices", "progress", "lean"),
    ("checkpoints", "packing"),
    ("inputs", "compilation"),
    ("evaluate", "keys"),
    ("storage", "agreement", "elementary", "supports"),
    ("variates", "hierarchy", "maxima"),
    ("seeds",),
    ("axes",),
    ("estimate",),
    ("covariance",),
    ("density", "peaks", "quadratic", "tails"),
    ("regions", "parts", "missing"),
    ("gaps",),
    ("mixture", "datasets", "observations"),
    ("passes",),
    ("prior", "statistics", "units", "spurious", "chart", "trees", "allocations", "convergence", "laws"),
    ("assignments", "distribution", "programs", "results", "initialize", "labels", "penalty", "greedy"),
    ("hierarchical", "lkj", "conjugate", "archives", "given"),
    ("stores",),
    ("files", "stories"),
    ("model",),
    ("replicates", "gibbs", "potential", "quantities", "clustering"),
    ("discrepancy", "chains", "approximations", "diagnosis"),
    ("merging", "checks"),
    ("acceleration",),
    ("mstep",),
    ("loop",),
    ("climb",),
    ("threads",),
    ("drive", "problem", "partitions"),
    ("verdict", "information"),
    ("engines", "resample", "groups", "finish"),
    ("contest",),
    ("outcomes",),
    ("cells",),
    ("em", "uncertainty"),
    ("limit", "ratio_test", "stochastic", "chain_starts"),
    ("pointwise", "questions"),
    ("draws", "switching", "evidence"),
    ("sampling", "comparison"),
    ("gap", "ranking"),
    ("selection",),
    ("sklearn.shared", "sklearn.starts"),
    ("sklearn.gaussian", "sklearn.centers", "sklearn.bayesian"),
    ("sklearn",),
    ("plots.style",),
    (
        "plots.search",
        "plots.clusters",
        "plots.fits",
        "plots.merging",
        "plots.checks",
        "plots.structures",
        "plots.allocations",
        "plots.intervals",
    ),
    ("plots.posterior", "plots.priors", "plots.hills", "plots.limit"),
    ("plots.classes",),
    ("plots", "report"),
    ("cli.shared",),
    ("cli.tables",),
    ("cli.files",),
    ("cli.outcome",),
    ("cli.pages",),
    ("cli.chosen",),
    ("cli.fit", "cli.search", "cli.sample", "cli.simulate", "cli.compare", "cli.plot"),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
# Within a layer: a prior declares its sites by `distribution`.
SIDEWAYS = {("programs", "distribution")}
# A result's one-line `.plot()`, `.save()` and `.load()` import what they call then, never at their module's top.
FIGURES = {("mixture", "files"), ("results", "files")} | {
    ("merging", "plots"),
    ("checks", "plots"),
    ("ranking", "plots"),
    ("gap", "plots"),
}
LIGHT = {"__future__", "jax", "numpy", "bayesmix"}
# Modules whose top may import more, because they are themselves loaded only where they are used.
HEAVY_TOPS = {
    name: {"numpyro"}
    for name in (
        "supports",
        "laws",
        "distribution",
        "stories",
        "gibbs",
        "potential",
        "chains",
        "approximations",
    )
}
for library, folder in (("typer", "cli"), ("sklearn", "sklearn")):
    HEAVY_TOPS |= {name: {library} for name in RANK if name.partition(".")[0] == folder}


def modules():
    return sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py" or path.parent != ROOT)


def name_of(path):
    """A module by its place: "em", in a folder "plots.clusters"; the folder itself is "plots"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def place_of(module):
    """The row of the picture that an import of ours belongs to, if any: the longest name that has one."""
    package, *parts = module.split(".")
    names = [".".join(parts[:end]) for end in range(len(parts), 0, -1)] if package == "bayesmix" else []
    return next((name for name in names if name in RANK), None)


def imports(tree, *, top_only):
    """(module, line) of imports, without those for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == "bayesmix":
                yield from (f"bayesmix.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif not top_only or not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from imports(node, top_only=top_only)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_downward(path):
    name = name_of(path)
    assert name in RANK, f"{name} has no place in the picture"
    tree = ast.parse(path.read_text())
    for module in imports(tree, top_only=False):
        other = place_of(module)
        figure = (name, other) in FIGURES and module not in imports(tree, top_only=True)
        allowed = other is None or RANK[other] < RANK[name] or (name, other) in SIDEWAYS or figure
        assert allowed, f"{name} imports {module}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_heavy_modules_load_on_first_use(path):
    import sys

    allowed = LIGHT | set(sys.stdlib_module_names) | HEAVY_TOPS.get(name_of(path), set())
    for module in imports(ast.parse(path.read_text()), top_only=True):
        assert module.split(".")[0] in allowed, f"{name_of(path)} imports {module} at its top"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_every_module_says_what_it_is_for_and_what_it_offers(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert "__all__" in path.read_text()


def test_no_submodule_shares_a_public_functions_name():
    assert not set(RANK) & (set(bm.__all__) - {"datasets"})


# A class of results is shown in the example of the function that returns it.
RETURNED = {
    name: re.findall(r"\w+", str(inspect.signature(function).return_annotation))
    for name in bm.__all__
    if inspect.isfunction(function := getattr(bm, name)) and ">>> " in (inspect.getdoc(function) or "")
}


@pytest.mark.parametrize("name", [name for name in bm.__all__ if name != "datasets"])
def test_public_names_have_a_docstring_with_a_running_example(name):
    public = getattr(bm, name)
    text = inspect.getdoc(public)
    assert text
    own = (
        {key: member for key, member in vars(public).items() if key[0] != "_"}
        if inspect.isclass(public)
        else {}
    )
    inside = "".join(inspect.getdoc(member) or "" for member in own.values())
    assert ">>> " in text + inside or any(name in names for names in RETURNED.values())
    assert not re.search("[α-ωΑ-Ω]", " ".join(inspect.signature(public).parameters))


def test_data_come_before_options_and_options_are_keyword_only():
    for function, positional in (
        (bm.fit, ["model", "x"]),
        (bm.kmeans, ["x", "n_components"]),
        (bm.weak_prior, ["x"]),
        (bm.GaussianMixture.simulate, ["self", "n"]),
    ):
        kinds = inspect.signature(function).parameters.values()
        assert [p.name for p in kinds if p.kind is not p.KEYWORD_ONLY] == positional


def test_tables_agree_with_each_other():
    assert {row.storage for row in STRUCTURES.values()} == set(STORAGES)
    assert {method.responsibilities for method in METHODS.values()} <= set(RESPONSIBILITIES)
    assert len(NAME) == len(CODE)
