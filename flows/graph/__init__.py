"""What a run would do: nodes, how entries become them, selection, plan, estimates, and the walk over them. Starts nothing."""
