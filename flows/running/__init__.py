"""One run: the walk brought to results, its folder, what is shown of it, how it ends."""
