"""Tuning a script or function of the user's own by a ``sigopt.yml``."""
