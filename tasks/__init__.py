"""One stage a file: each adapts the stage contract of `tasks.runtime` to the code that does the work."""
