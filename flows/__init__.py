"""What runs, in which order: Prefect flows and the command line. No torch, no maths, no I/O of its own."""
