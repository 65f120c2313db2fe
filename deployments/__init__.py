"""Configuration only: the Prefect deployment, presets, lock files."""
