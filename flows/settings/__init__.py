"""What a run is told: sections, pipeline entries, presets, overrides, and the words for what is wrong with them."""
