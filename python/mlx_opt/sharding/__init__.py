"""Optimizers whose states are divided among the members of a group of processes."""
