"""Recipes of the PyTorch backend: rewrites of the exported graph and corrections of the quantized one."""
