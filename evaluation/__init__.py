"""A model to numbers, judgements, plots and one report."""
