"""One readable file a training method."""
