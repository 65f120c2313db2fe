"""Rewards that are asked over HTTP: services that score, and language models that judge."""
