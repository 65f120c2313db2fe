"""Settings of the model and training stages. Importable without torch: the command line and the UI read these models."""
