"""The built-in task: review procedures for policies, generated, corrupted, checked."""
