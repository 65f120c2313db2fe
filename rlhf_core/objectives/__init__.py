"""Pure tensor functions, one family a file; no models, no I/O, no global state."""
