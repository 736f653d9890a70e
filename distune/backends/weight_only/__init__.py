"""Weight-only quantization of a weight [in, out] in NumPy alone: RTN, GPTQ, AWQ and HQQ, shared by the backends."""
