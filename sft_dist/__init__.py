"""Trains, evaluates and exports what a recipe says; runs on the nodes and knows nothing of the launcher."""

import os

__version__ = "0.1.0"

# MKL chooses kernels by how operands are aligned in memory, so that on some CPUs the same product differs in its last bit
# between two processes, and a resumed run from an undisturbed one (docs/decisions/0012-bits-on-cpus.md). MKL reads this when
# torch is loaded, which is after this module.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
