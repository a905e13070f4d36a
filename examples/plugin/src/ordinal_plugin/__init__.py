"""Ratings of texts: a task and a metric for sft-dist."""
