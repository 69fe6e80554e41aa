"""Sparse layers as torch modules: same numbers as dense masked layers, swapped in and back without loss."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fedsparsify.errors import ArgumentError
from fedsparsify.sparse import SparseConv2d, SparseLinear, densify, native, sparsify_module
from tests.sparse.networks import SMALL_CNN_INPUT, small_cnn


def masks_for(module: nn.Module, density: float = 0.4, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.random(tuple(p.shape)) < density for name, p in module.named_parameters()}


def masked(module: nn.Module, masks: dict[str, np.ndarray]) -> nn.Module:
    module = copy.deepcopy(module)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.mul_(torch.from_numpy(masks[name]))
    return module


@pytest.fixture(params=["native", "dense"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways a sparse layer may compute: the kernels, and a dense weight made for the call."""
    if request.param == "native" and not native.available():
        pytest.skip("the native kernels are not built")
    if request.param == "dense":
        monkeypatch.setattr(native, "_native", None)
    return str(request.param)


def test_outputs_and_all_gradients_equal_those_of_masked_dense_layers(path: str) -> None:
    torch.manual_seed(0)
    module = small_cnn()
    masks = masks_for(module)
    dense, sparse = masked(module, masks), sparsify_module(module, masks)
    x = torch.randn(9, *SMALL_CNN_INPUT)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [net(i) for net, i in zip((dense, sparse), inputs, strict=True)]
    for y in outputs:
        y.square().sum().backward()
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-4, rtol=1e-3)
    gradients = dict(dense.named_parameters())
    for name, layer in sparse.named_modules():
        if isinstance(layer, SparseLinear | SparseConv2d):
            expected = gradients[f"{name}.weight"].grad
            assert expected is not None
            torch.testing.assert_close(layer.values.grad, expected[layer.mask], atol=1e-3, rtol=1e-3)


def test_any_optimiser_keeps_pruned_positions_at_zero(path: str) -> None:
    torch.manual_seed(0)
    module = small_cnn()
    masks = masks_for(module)
    sparse = sparsify_module(module, masks)
    optimiser = torch.optim.Adam(sparse.parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        sparse(torch.randn(8, *SMALL_CNN_INPUT)).square().mean().backward()
        optimiser.step()
    after = densify(sparse).state_dict()
    for name, mask in masks.items():
        pruned, kept = after[name].numpy()[~mask], after[name].numpy()[mask]
        assert not pruned.any()
        assert np.count_nonzero(kept) >= 0.9 * kept.size
    assert any(not torch.equal(after[name], p) for name, p in masked(module, masks).named_parameters())


def test_densify_gives_back_names_shapes_and_values() -> None:
    module = small_cnn()
    masks = masks_for(module)
    back = densify(sparsify_module(module, masks))
    expected = masked(module, masks)
    assert [type(m) for m in back.modules()] == [type(m) for m in expected.modules()]
    for (name, a), (other, b) in zip(back.state_dict().items(), expected.state_dict().items(), strict=True):
        assert name == other
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_the_given_module_is_not_changed() -> None:
    module = small_cnn()
    before = copy.deepcopy(module.state_dict())
    sparsify_module(module, masks_for(module))
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert isinstance(module[0], nn.Conv2d)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))  # type: ignore[no-any-return]


def test_a_shared_weight_stays_dense_and_masked() -> None:
    module = Shared()
    mask = np.eye(4, dtype=bool)
    sparse = sparsify_module(module, {"a.weight": mask})
    layer = sparse.a
    assert isinstance(layer, nn.Linear) and layer.weight is sparse.b.weight  # type: ignore[union-attr]
    sparse(torch.ones(2, 4)).sum().backward()
    assert layer.weight.grad is not None
    assert not layer.weight.detach().numpy()[~mask].any() and not layer.weight.grad.numpy()[~mask].any()


def test_layers_without_kernels_stay_dense_and_masked() -> None:
    module = nn.ModuleDict(
        {
            "grouped": nn.Conv2d(4, 4, 3, groups=2),
            "dilated": nn.Conv2d(4, 4, 3, dilation=2),
            "recurrent": nn.LSTM(4, 4),
        }
    )
    masks = masks_for(module, 0.5)
    sparse = sparsify_module(module, masks)
    for name, p in sparse.named_parameters():
        assert not p.detach().numpy()[~masks[name]].any()
    assert [type(m) for m in sparse.modules()] == [type(m) for m in module.modules()]


def test_a_sparse_module_can_be_copied_and_reloaded(path: str) -> None:
    module = small_cnn().eval()
    sparse = sparsify_module(module, masks_for(module))
    x = torch.randn(3, *SMALL_CNN_INPUT)
    expected = sparse(x)
    torch.testing.assert_close(copy.deepcopy(sparse)(x), expected)
    other = sparsify_module(small_cnn().eval(), masks_for(module))
    other.load_state_dict(sparse.state_dict())
    torch.testing.assert_close(other(x), expected)


def test_loading_a_mask_of_another_size_is_refused() -> None:
    sparse = SparseLinear(np.eye(3, dtype=bool), bias=False)
    state = sparse.state_dict()
    state["mask"] = torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(ArgumentError, match="9 survivors, but the layer has 3 values"):
        sparse.load_state_dict(state)


def test_linear_takes_any_leading_dimensions(path: str) -> None:
    mask = np.random.default_rng(0).random((5, 4)) < 0.5
    layer = SparseLinear(mask)
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.dense_weight(), layer.bias))


def test_errors_name_what_does_not_fit() -> None:
    mask = np.eye(3, dtype=bool)
    with pytest.raises(ArgumentError, match="must have the shape"):
        SparseLinear(mask[0])
    with pytest.raises(ArgumentError, match="do not fit a mask with 3 survivors"):
        SparseLinear(mask, torch.zeros(4))
    with pytest.raises(ArgumentError, match="does not fit 3 outputs"):
        SparseLinear(mask, bias=torch.zeros(2))
    with pytest.raises(ArgumentError, match="stride"):
        SparseConv2d(np.ones((1, 1, 3, 3), bool), stride=(0, 1))
    with pytest.raises(ArgumentError, match="no such parameter"):
        sparsify_module(nn.Linear(3, 3), {"wait": mask})
    with pytest.raises(ArgumentError, match=r"the mask of weight is bool\[2, 2\]"):
        sparsify_module(nn.Linear(3, 3), {"weight": mask[:2, :2]})
    if native.available():
        with pytest.raises(ArgumentError, match="does not end in 3 features"):
            SparseLinear(mask)(torch.zeros(2, 4))
        with pytest.raises(ArgumentError, match="kernel is larger"):
            SparseConv2d(np.ones((1, 1, 3, 3), bool))(torch.zeros(1, 1, 2, 2))
