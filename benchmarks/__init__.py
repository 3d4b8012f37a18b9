"""Optimizer steps timed beside MLX's and PyTorch's: ``python -m mlx_opt bench``."""
