"""What to try next. Knows nothing of backends, transports and ranks."""
