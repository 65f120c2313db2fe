"""Running code that nobody has read: what it may use, how it is stopped, and how its answers are believed."""
