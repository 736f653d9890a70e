"""Ops, their options, and the tuning space."""
