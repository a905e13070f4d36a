"""Trains until the first step is logged, then prints the modules that are loaded, in the order of their import, as JSON.

python benchmarks/first_step.py RECIPE RUNS
"""

from __future__ import annotations

import json
import os
import sys
from typing import NoReturn

from sft_dist import train
from sft_dist.training.metrics_logger import MetricsLogger


def print_modules(*arguments: object) -> NoReturn:
    print(json.dumps(list(sys.modules)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    recipe, runs = sys.argv[1:]
    MetricsLogger.log_step = print_modules  # type: ignore[method-assign]
    sys.exit(train.main([recipe, "--runs", runs]))
