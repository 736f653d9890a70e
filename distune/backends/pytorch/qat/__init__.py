"""Quantization-aware training: a graph with fake quantization is trained, and converted with what it has learned."""
