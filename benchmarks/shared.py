"""What benchmarks have in common. Import it before NumPy: it pins the threads of the peers to the number of cores."""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version

CORES = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, CORES)
# Processes that are started find the packages' bytecode, as users' do.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def versions(*libraries):
    """What every row says of where it was measured: date, machine, bayesmix and the `libraries` by name; printed too."""
    import jax

    said = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {CORES} cores, {jax.default_backend()}",
    } | {name: version(name) for name in ("bayesmix", "jax", *libraries)}
    print(", ".join(f"{name} {value}" for name, value in said.items()))
    return said


def write(rows, path):
    """The rows as a file, a JSON object a line."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def peak_memory():
    """The most memory that this process has had, in megabytes; its parent's peak, which Linux hands on, aside."""
    import resource
    import sys
    from pathlib import Path

    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2 ** (20 if sys.platform == "darwin" else 10)
