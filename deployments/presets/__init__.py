"""Presets: one YAML file a preset, fields of `flows.config.PipelineConfig`."""
