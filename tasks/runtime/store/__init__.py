"""Finished artifacts, what each node of a run was, and results taken over under a new key."""
