"""The report of a run: one HTML file, from what a comparison and a run folder hold."""
