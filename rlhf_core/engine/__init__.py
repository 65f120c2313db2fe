"""One training engine over DeepSpeed: forward, backward, step, sharding, offload, checkpoint, resume."""
