"""Online training: sample, score, compute advantages, update; `run` is the story, the pieces lie beside it."""
