"""What stands behind ``distune.quantization``, ``distune.benchmark`` and ``distune.mix_precision``."""
