"""Frameworks: what can be quantized and how."""
