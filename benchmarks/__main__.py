"""Every benchmark, one after another, each in a process of its own; rows and figures go where the pages cite them.

    uv run --group benchmarks python -m benchmarks [--only suite acceleration]

A benchmark is a script beside this one, and says in its first lines what it measures and against whom.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parent / "docs" / "figures"
# A row: what is asked of the script.
BENCHMARKS = {
    "suite": ["--json", RESULTS / "suite.jsonl", "--figure", FIGURES / "benchmarks.png"],
    "acceleration": ["--json", RESULTS / "acceleration.jsonl", "--figure", FIGURES / "acceleration.png"],
    "search": [],
    "bootstrap": [],
    "online": [],
    "posterior": [],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(BENCHMARKS), choices=BENCHMARKS)
    failed = []
    for name in parser.parse_args().only:
        print(f"\n# {name}", flush=True)
        command = [sys.executable, HERE / f"{name}.py", *BENCHMARKS[name]]
        if subprocess.run([str(part) for part in command]).returncode:
            failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
