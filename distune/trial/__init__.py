"""Messages between master and workers, and the worker's side of them."""
