"""Names and shapes by offset: what has a place in the flat vector, where, and that reading undoes writing."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

from fedsparsify.errors import ArgumentError
from fedsparsify.layout import ParameterLayout, Slot


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def test_offsets_follow_the_networks_own_order_without_gaps() -> None:
    layout = ParameterLayout.of(network())
    assert [(slot.name, slot.shape, slot.offset, slot.size) for slot in layout.parameters] == [
        ("0.weight", (3, 2, 2, 2), 0, 24),
        ("0.bias", (3,), 24, 3),
        ("1.weight", (3,), 27, 3),
        ("1.bias", (3,), 30, 3),
        ("3.weight", (2, 12), 33, 24),
        ("3.bias", (2,), 57, 2),
    ]
    assert layout.n == 59
    # num_batches_tracked is an integer and has no place.
    assert [(slot.name, slot.offset) for slot in layout.buffers] == [("1.running_mean", 0), ("1.running_var", 3)]
    assert layout.b == 6
    assert layout.parameters[1].span == slice(24, 27)


def test_a_scalar_tensor_takes_one_place() -> None:
    module = nn.Module()
    module.register_parameter("scale", nn.Parameter(torch.tensor(3.0)))
    layout = ParameterLayout.of(module)
    assert layout.parameters == (Slot("scale", (), 0),)
    assert layout.read(module)[0].tolist() == [3.0]


def test_tensors_lie_in_c_order() -> None:
    module = nn.Linear(3, 2)
    with torch.no_grad():
        module.weight.copy_(torch.arange(6).view(2, 3))
        module.bias.copy_(torch.tensor([6, 7]))
    assert ParameterLayout.of(module).read(module)[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    module.weight = nn.Parameter(torch.tensor([[0.0, 3], [1, 4], [2, 5]]).t())  # other strides, other numbers
    assert ParameterLayout.of(module).read(module)[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_writing_what_was_read_makes_an_equal_network() -> None:
    source, target = network(), network()
    with torch.no_grad():
        source.get_buffer("1.running_mean").fill_(5)
    layout = ParameterLayout.of(source)
    layout.write(target, *layout.read(source))
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name


def test_what_is_read_is_a_copy() -> None:
    module = nn.Linear(2, 1)
    layout = ParameterLayout.of(module)
    w, _ = layout.read(module)
    w[:] = 9
    assert not (layout.read(module)[0] == 9).any()


def test_buffers_may_be_left_as_they_are() -> None:
    module = network()
    layout = ParameterLayout.of(module)
    layout.write(module, np.zeros(layout.n, np.float32), np.full(layout.b, 2, np.float32))
    layout.write(module, np.ones(layout.n, np.float32))
    w, buffers = layout.read(module)
    assert (w == 1).all()
    assert (buffers == 2).all()


def test_a_parameter_shared_by_layers_has_one_place() -> None:
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    module[1].weight = module[0].weight
    layout = ParameterLayout.of(module)
    assert [slot.name for slot in layout.parameters] == ["0.weight"]
    layout.write(module, np.full(9, 4, np.float32))
    assert (module.get_submodule("1").get_parameter("weight") == 4).all()


def test_frozen_parameters_have_no_place() -> None:
    module = nn.Linear(3, 2)
    module.weight.requires_grad_(False)
    assert [slot.name for slot in ParameterLayout.of(module).parameters] == ["bias"]


def test_a_network_that_is_not_float32_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"parameter weight is torch\.float64; .* use module\.float\(\)"):
        ParameterLayout.of(nn.Linear(2, 2).double())
    frozen = nn.Linear(2, 2)
    frozen.weight = nn.Parameter(frozen.weight.half(), requires_grad=False)
    assert ParameterLayout.of(frozen).n == 2  # it is never trained or sent, so its type is the user's


def test_a_network_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ArgumentError, match="ReLU has no trainable parameter, so there is nothing to train"):
        ParameterLayout.of(nn.ReLU())


def test_vectors_of_the_wrong_length_are_refused() -> None:
    module = network()
    layout = ParameterLayout.of(module)
    w, buffers = layout.read(module)
    with pytest.raises(ArgumentError, match=r"parameters have shape \(58,\), but this network has 59"):
        layout.write(module, w[:-1], buffers)
    with pytest.raises(ArgumentError, match=r"buffers have shape \(7,\), but this network has 6"):
        layout.write(module, w, np.append(buffers, np.float32(0)))
    with pytest.raises(ArgumentError, match=r"shape \(60,\) does not fit a layout of 59 parameters"):
        layout.split(np.zeros(60, np.float32))


def test_another_network_is_refused_by_the_tensor_it_lacks() -> None:
    layout = ParameterLayout.of(nn.Linear(3, 2))
    w = np.zeros(8, np.float32)
    with pytest.raises(ArgumentError, match=r"has no such tensor where bias \(2,\) should be"):
        layout.write(nn.Linear(3, 2, bias=False), w)
    with pytest.raises(ArgumentError, match=r"has shape \(2, 4\) where weight \(2, 3\) should be"):
        layout.write(nn.Linear(4, 2), w)


def test_split_gives_named_views_of_weights_and_masks() -> None:
    layout = ParameterLayout.of(nn.Linear(3, 2))
    for vector in (np.arange(8, dtype=np.float32), np.arange(8) % 2 == 0):
        views = layout.split(vector)
        assert {name: view.shape for name, view in views.items()} == {"weight": (2, 3), "bias": (2,)}
        assert views["bias"].tolist() == vector[6:].tolist()
        assert all(np.shares_memory(view, vector) for view in views.values())


def test_the_digest_is_the_one_that_the_message_format_specifies() -> None:
    text = (
        '{"buffers": [["1.running_mean", [3]], ["1.running_var", [3]]], "parameters": [["0.weight", [3, 2, 2, 2]],'
        ' ["0.bias", [3]], ["1.weight", [3]], ["1.bias", [3]], ["3.weight", [2, 12]], ["3.bias", [2]]]}'
    )
    layout = ParameterLayout.of(network())
    assert layout.to_json() == json.loads(text)
    assert layout.digest == hashlib.sha256(text.encode()).digest()[:8].hex()


def test_layouts_with_other_names_shapes_or_buffers_have_other_digests() -> None:
    digests = {
        ParameterLayout.of(module).digest
        for module in (
            nn.Linear(3, 2),
            nn.Linear(2, 3),  # as many parameters
            nn.Sequential(nn.Linear(3, 2)),  # other names
            nn.Sequential(nn.BatchNorm1d(4)),
            nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)),
            nn.Sequential(nn.LayerNorm(4)),
        )
    }
    assert len(digests) == 5  # LayerNorm and a batch norm that tracks nothing are one layout
    assert ParameterLayout.of(nn.Linear(3, 2)).digest == ParameterLayout.of(nn.Linear(3, 2)).digest
