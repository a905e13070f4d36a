"""Slurm's commands and their environment."""

from __future__ import annotations

from launch.slurm.client import clean_environment


def test_the_environment_keeps_what_a_job_needs() -> None:
    kept = {"HOME": "/h", "PATH": "/p", "HF_TOKEN": "t", "SLURM_CONF": "c", "RANKING": "1"}
    assert clean_environment({**kept, "SLURM_JOB_ID": "1", "LOCAL_RANK": "0", "SFT_DIST_ATTEMPT": "3"}) == kept
