"""Transports between master and workers, the child process of a worker, and facts about nodes."""
