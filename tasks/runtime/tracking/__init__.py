"""Telling MLflow: journal first, sent by a thread, a later run, or `python -m tasks.runtime.tracking HOME`."""
