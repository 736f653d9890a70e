"""PyTorch modules, quantized by torchao's PT2E and lowered by Inductor."""
