"""Rows from outside: reading them, recognising their shape, and turning them into rows of our tables."""
