"""A reward model behind HTTP, for this and other trainers."""
