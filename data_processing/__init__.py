"""Raw sources to validated Arrow tables, and the task generators with their checkers. Imports no other package of ours."""
