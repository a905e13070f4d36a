"""What runs on the nodes: training, evaluation, prediction. Importing this package imports nothing heavy."""

__version__ = "0.1.0"
