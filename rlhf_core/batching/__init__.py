"""From messages to token rows to model batches: chat templates, tokenising, packing, balancing, collating."""
