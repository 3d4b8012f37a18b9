"""What the command ``python -m mlx_opt`` is made of, and what the package asks before it loads."""
