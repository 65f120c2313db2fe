"""What the commands of `flows.cli` do."""
