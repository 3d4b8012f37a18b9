"""The rules' formulas, each written once over an array module.

With NumPy, in float64, a formula is what the tests hold every backend to; see
:mod:`mlx_opt.references`.
With mlx.core it is a graph of MLX's operations, which the optimizers that mlx.optimizers does not
have run where there is no primitive: under a gradient transformation, for complex numbers, and
where a part was not built. The others run mlx.optimizers' own formula there.

A formula takes the array module `xp`, the parameter `w`, its gradient `g`, the state (a dict of
arrays), the 1-based `step` and the hyperparameters under the names that the optimizer's constructor
gives them. It returns the new parameter and the new state, and leaves its arguments as they were.
"""

from . import adam_variants as adam_variants
from . import d_adaptation as d_adaptation
from . import elementwise as elementwise
from . import schedule_free as schedule_free
from .registry import CASES as CASES
from .registry import FINISHES as FINISHES
from .registry import FORMULAS as FORMULAS
from .registry import KEPT as KEPT
from .registry import SUMS as SUMS
from .registry import reference as reference
from .tensors import muon as muon
from .tensors import newton_schulz as newton_schulz
