"""Autoregressive distillation of diffusion transformers (Kim et al., CVPR 2025): few-step students of DiT teachers."""

__version__ = "0.1.0"
