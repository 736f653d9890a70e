"""Recipes of the ONNX Runtime backend: rewrites of the fp32 graph and corrections of the quantized one."""
