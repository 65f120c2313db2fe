"""How often a model says what it should not: by sampling, exactly for short answers, and under attack."""
