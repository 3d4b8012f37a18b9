"""Where mlx_opt refuses, by name and with nothing changed, what mlx.optimizers takes.

Each line has the actions, the class of the error and what its text has to match. The text has to
name the place as well.
"""

DOCUMENTED = [
    # Shapes that differ, where mlx.optimizers broadcasts.
    ("parameter-one gradient-one moment-one", ValueError, r"gradient \(|state \""),
    ("gradient-list gradients-branch-tuple gradients-branch-twin", ValueError, r"gradient \("),
    # One dict of state for two parameters, which mlx.optimizers updates twice.
    ("leaf-state-twin", ValueError, "state"),
    # What is no array of MLX.
    ("moment-float moment-numpy", (KeyError, TypeError), "state"),
    ("parameter-float parameter-numpy", TypeError, "parameter must be an mlx.core.array"),
    ("gradient-numpy", TypeError, "gradient must be an mlx.core.array"),
    # A new state in the middle of a step is not filled, as with mlx.optimizers once it walks it.
    ("state-set-anew", KeyError, "no optimizer state"),
    # What stands in the root of a state.
    ("step-number step-float step-numpy-number", (TypeError, ValueError), "step"),
    (
        "learning_rate-number learning_rate-float learning_rate-numpy-number",
        TypeError,
        "learning_rate",
    ),
]

# Python does not walk a dict that changes; mlx.optimizers walks a copy of it in some forms.
SIZE_CHANGED = "gradient-gone gradient-added gradients-cleared gradients-branch-gone"
