"""Local servers and processes: Prefect, MLflow, Ray, the worker; health, environment, this machine."""
