"""How any stage runs: spec, key, store, executors, worker, events, tracking. Knows no method and no model."""
