"""Diagnosis: what went wrong in a run, by rules over the files that it left behind."""
