"""Training: objectives, models, engines, rollouts, rewards and recipes. Knows no Prefect and no MLflow."""
