"""The kernels of rules of two passes on the CPU, against the float64 references."""

import numpy as np
import pytest
from passes import Tensor, all_kernels
from update import shape_for

KERNELS = all_kernels()


def each_kernel(wanted):
    return pytest.mark.parametrize("pair", [*filter(wanted, KERNELS)], ids=str)


@each_kernel(lambda pair: not pair.state.scaling)
def test_a_step(pair):
    tensor = Tensor(pair, shape_for(pair.state))
    tensor.run()
    tensor.assert_updated()


@each_kernel(lambda pair: pair.state.scaling)
def test_the_gradients_are_scaled(pair):
    tensor = Tensor(pair, shape_for(pair.state))
    tensor.run(scale=0.3)
    tensor.assert_updated(scale=0.3)


@pytest.mark.parametrize("scale", [np.inf, np.nan])
@each_kernel(lambda pair: pair.state.scaling == "if_finite")
def test_a_step_whose_scale_is_not_finite_is_skipped(pair, scale):
    tensor = Tensor(pair, shape_for(pair.state))
    tensor.run(scale=scale)
    tensor.assert_kept()
