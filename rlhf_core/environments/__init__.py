"""What answers a policy between its turns: tools, checkers, games."""
