"""Every sparse operator against its NumPy twin in float64, on each instruction set of this processor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparsify.sparse import available, reference, targets
from fedsparsify.sparse.native import require_native

pytestmark = pytest.mark.skipif(not available(), reason="the native kernels are not built")

DENSITIES = st.sampled_from([0.0, 0.05, 0.3, 0.8, 1.0])
BATCHES = st.sampled_from([1, 2, 7, 8, 9, 16, 31, 32, 33, 70])


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * scale)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def drawn(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("target", targets())
@settings(max_examples=60, deadline=None)
@given(
    outputs=st.integers(1, 40), inputs=st.integers(1, 50), batch=BATCHES, density=DENSITIES, bias=st.booleans(),
    empty_row=st.booleans(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_linear_equals_its_twin(
    target: str, outputs: int, inputs: int, batch: int, density: float, bias: bool, empty_row: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((outputs, inputs)) < density
    if empty_row:
        mask[rng.integers(outputs)] = False
    values, x, dy = drawn(rng, int(mask.sum())), drawn(rng, batch, inputs), drawn(rng, batch, outputs)
    b = drawn(rng, outputs) if bias else None
    op = require_native().LinearOperator(mask, target)
    twin_values, twin_x, twin_dy = (a.astype(np.float64) for a in (values, x, dy))
    close(op.forward(values, b, x), reference.linear(mask, twin_values, b, twin_x))
    close(op.input_gradient(values, dy), reference.linear_input_gradient(mask, twin_values, twin_dy))
    close(op.value_gradient(x, dy), reference.linear_value_gradient(mask, twin_x, twin_dy))


@pytest.mark.parametrize("target", targets())
@settings(max_examples=60, deadline=None)
@given(
    outputs=st.integers(1, 9), inputs=st.integers(1, 9), kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)), padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)), batch=BATCHES, density=DENSITIES,
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_conv2d_equals_its_twin(
    target: str, outputs: int, inputs: int, kernel: tuple[int, int], stride: tuple[int, int],
    padding: tuple[int, int], size: tuple[int, int], batch: int, density: float, seed: int,
) -> None:  # fmt: skip
    size = (max(size[0], kernel[0] - 2 * padding[0]), max(size[1], kernel[1] - 2 * padding[1]))
    rng = np.random.default_rng(seed)
    mask = rng.random((outputs, inputs, *kernel)) < density
    values, b, x = drawn(rng, int(mask.sum())), drawn(rng, outputs), drawn(rng, batch, inputs, *size)
    op = require_native().ConvOperator(mask, stride, padding, (inputs, *size), target)
    twin_values, twin_x = values.astype(np.float64), x.astype(np.float64)
    expected = reference.conv2d(mask, twin_values, b, twin_x, stride, padding)
    close(op.forward(values, b, x), expected)
    dy = drawn(rng, *expected.shape)
    twin_dy = dy.astype(np.float64)
    close(
        op.input_gradient(values, dy),
        reference.conv2d_input_gradient(mask, twin_values, twin_dy, size, stride, padding),
    )
    close(op.value_gradient(x, dy), reference.conv2d_value_gradient(mask, twin_x, twin_dy, stride, padding))


def test_twins_agree_with_torch_on_a_convolution() -> None:
    """The twins are the yardstick, so they are held against torch once themselves."""
    import torch
    import torch.nn.functional as F

    rng = np.random.default_rng(0)
    mask = rng.random((4, 3, 3, 2)) < 0.5
    values, x = rng.standard_normal(int(mask.sum())), rng.standard_normal((2, 3, 7, 6))
    weight = torch.zeros(mask.shape, dtype=torch.float64)
    weight[torch.from_numpy(mask)] = torch.from_numpy(values)
    tx, weight = torch.from_numpy(x).requires_grad_(), weight.requires_grad_()
    y = F.conv2d(tx, weight, stride=(2, 1), padding=(1, 2))
    dy = rng.standard_normal(tuple(y.shape))
    y.backward(torch.from_numpy(dy))  # type: ignore[no-untyped-call]
    assert tx.grad is not None and weight.grad is not None
    np.testing.assert_allclose(reference.conv2d(mask, values, None, x, (2, 1), (1, 2)), y.detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(
        reference.conv2d_input_gradient(mask, values, dy, (7, 6), (2, 1), (1, 2)), tx.grad.numpy(), atol=1e-12
    )
    np.testing.assert_allclose(
        reference.conv2d_value_gradient(mask, x, dy, (2, 1), (1, 2)), weight.grad.numpy()[mask], atol=1e-12
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda n: n.LinearOperator(np.ones(3, bool)),
        lambda n: n.LinearOperator(np.ones((3, 0), bool)),
        lambda n: n.LinearOperator(np.ones((3, 2), bool), "mmx"),
        lambda n: n.LinearOperator(np.ones((3, 2), bool)).forward(ones(5), None, ones(1, 2)),
        lambda n: n.LinearOperator(np.ones((3, 2), bool)).forward(ones(6), None, ones(1, 3)),
        lambda n: n.LinearOperator(np.ones((3, 2), bool)).forward(ones(6), ones(2), ones(1, 2)),
        lambda n: n.LinearOperator(np.ones((3, 2), bool)).value_gradient(ones(2, 2), ones(1, 3)),
        lambda n: n.ConvOperator(np.ones((1, 1, 3, 3), bool), (1, 1), (0, 0), (1, 2, 9)),
        lambda n: n.ConvOperator(np.ones((1, 1, 3, 3), bool), (0, 1), (0, 0), (1, 9, 9)),
        lambda n: n.ConvOperator(np.ones((1, 1, 3, 3), bool), (1, 1), (-1, 0), (1, 9, 9)),
        lambda n: n.ConvOperator(np.ones((1, 2, 3, 3), bool), (1, 1), (0, 0), (1, 9, 9)),
    ],
)  # fmt: skip
def test_operators_refuse_what_does_not_fit(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"\w"):
        call(require_native())
