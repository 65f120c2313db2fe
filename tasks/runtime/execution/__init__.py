"""Bringing a stage to its result: attempts, executors, following, the Prefect task."""
