"""The process that runs one attempt of one stage: `python -m tasks.runtime.worker spec.json`."""
