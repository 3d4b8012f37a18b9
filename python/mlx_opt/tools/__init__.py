"""The tools of ``python -m mlx_opt``, and the checks that the package makes on import."""
