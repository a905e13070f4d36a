"""Slurm: clusters as data, the scripts that are sent, the jobs of each run, and what the queue says about them.

There are two ways to submit. Training has a script of its own (job.py), because nodes that meet, signals and requeue rules
are more than a function call; evaluations are arrays of Python functions, which submitit sends (functions.py).
"""
