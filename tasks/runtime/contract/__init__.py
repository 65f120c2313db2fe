"""What a stage is, how it is asked for and what it answers; home, settings, failures."""
