"""What takes the place of a compiled part: each rule by its formula in MLX's operations.

It has the interface of a part, `_ext.pyi`, without what only tests and reports of a part need.
Nothing is fused, and no array is overwritten.
"""

from .part import Part as Part
from .part import Program as Program
from .steps import available as available
from .steps import begin_scale as begin_scale
from .steps import commit as commit
from .steps import evaluate_chains as evaluate_chains
from .steps import global_norm as global_norm
from .steps import gpu_problem as gpu_problem
from .steps import gradient_scale as gradient_scale
from .steps import is_assigned as is_assigned
from .steps import muon_program as muon_program
from .steps import next_kept as next_kept
from .steps import next_number as next_number
from .steps import num_threads as num_threads
from .steps import orthogonalized as orthogonalized
from .steps import program as program
from .steps import set_num_threads as set_num_threads
from .steps import stage as stage
from .steps import update as update
