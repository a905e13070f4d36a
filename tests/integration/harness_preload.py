"""Imported once by the fork server; importing starts no threads that a fork would lose."""
