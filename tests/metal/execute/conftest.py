"""Runs the share of the checks that MLX_OPT_KERNEL_CHECKS chooses."""

from share import chosen


def pytest_collection_modifyitems(config, items):
    kept = chosen(items, "MLX_OPT_KERNEL_CHECKS")
    left_out = set(items) - set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = kept
