"""Ray actors, placement and worker groups: one controller, many workers."""
