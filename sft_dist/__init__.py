"""Trains, evaluates and exports what a recipe says; runs on the nodes and knows nothing of the launcher."""

import os

__version__ = "0.1.0"

# On some CPUs, MKL chooses kernels by how operands are aligned in memory: the same product can then differ in its last bits
# between two processes, and a resumed run from an uninterrupted one (docs/decisions/0012-bits-on-cpus.md). MKL reads the
# variable at a process's first matrix product.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
