"""Hyper-parameter search: trials are ordinary runs, and one process at a time decides about them."""
