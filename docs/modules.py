"""Which module answers which question: `python docs/modules.py` writes docs/modules.md out of their first sentences."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent

GROUPS = {
    "Data and the door": "inputs frames blocks keys documents missing",
    "A mixture": "mixture storage covariance density evaluate parts peaks regions tails quadratic axes",
    "The story and its priors": "model distribution supports prior conjugate programs hierarchical lkj laws",
    "The loop": "statistics observations gaps passes units problem estimate mstep penalty acceleration loop climb "
    "threads drive",
    "Starts, engines and verdicts": "seeds initialize given engines em limit stochastic status spurious "
    "verdict finish results",
    "A search": "selection ranking hierarchy partitions groups contest outcomes cells gap",
    "How sure, and is it right": "information chart resample uncertainty ratio_test replicates discrepancy "
    "checks merging agreement labels",
    "The posterior": "sampling stories potential chain_starts chains gibbs approximations draws pointwise "
    "switching trees allocations clustering greedy questions evidence comparison quantities "
    "convergence diagnosis",
    "Programs and processes": "compilation packing lean elementary maxima variates assignments devices "
    "progress interrupts checkpoints",
    "Files": "files archives stores",
    "Faces": "plots report sklearn cli datasets",
}

HEAD = """# Modules

For those who read the code: each module and the question that it answers, in its own first sentence. Imports point
downward only; `tests/test_architecture.py` has the layers as a table. This page is written by `python
docs/modules.py`, and a test checks it.
"""


def first_sentence(path: Path) -> str:
    """What a module says it is."""
    words = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    return re.split(r"(?<=\.) ", words)[0]


def page() -> str:
    """The page."""
    lines = [HEAD]
    for group, names in GROUPS.items():
        lines += [f"## {group}\n", "| module | |", "|---|---|"]
        for name in names.split():
            path = ROOT / "bayesmix" / f"{name}.py"
            path = path if path.exists() else ROOT / "bayesmix" / name / "__init__.py"
            text = first_sentence(path).replace("|", "\\|")
            lines.append(f"| `{name}` | {text} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    (ROOT / "docs" / "modules.md").write_text(page(), encoding="utf-8")
