"""Slurm: what is sent to it (job.py, array.py), who was sent (jobs.py), what it says (queue.py)."""
