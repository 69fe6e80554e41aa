"""Models, references and messages that the wire's tests share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedsparsify.layout import ParameterLayout, Slot
from fedsparsify.state import Floats, Mask, ModelState
from fedsparsify.wire import SERVER, Kind, Message, Reference
from tests.wire import spec

NO_BUFFERS = np.zeros(0, np.float32)
SHAPES = (("conv", (4, 2, 3, 3)), ("conv.bias", (4,)), ("fc", (5, 8)), ("fc.bias", (5,)), ("scale", ()))
BUFFERS = (("running", (7,)),)


def layout_of(parameters: spec.Tensors = SHAPES, buffers: spec.Tensors = BUFFERS) -> ParameterLayout:
    return ParameterLayout(_slots(parameters), _slots(buffers))


def _slots(tensors: spec.Tensors) -> tuple[Slot, ...]:
    slots: list[Slot] = []
    for name, shape in tensors:
        slots.append(Slot(name, tuple(shape), slots[-1].span.stop if slots else 0))
    return tuple(slots)


def vector_layout(n: int, b: int = 0) -> ParameterLayout:
    """A network of one flat tensor."""
    return layout_of([("w", (n,))], [("running", (b,))] if b else [])


def tensors(layout: ParameterLayout) -> tuple[spec.Tensors, spec.Tensors]:
    """The network as the specification's decoder wants it."""
    return [(s.name, s.shape) for s in layout.parameters], [(s.name, s.shape) for s in layout.buffers]


def held(reference: Reference | None) -> spec.Held | None:
    if reference is None:
        return None
    model = reference.model
    base = reference._base
    own = None if base is reference else reference.drift
    return spec.Held(model.mask, model.values, model.buffers, base.drift, own)


def spec_decode(data: bytes, layout: ParameterLayout, reference: Reference | None = None) -> spec.Content:
    return spec.decode(data, *tensors(layout), held(reference))


def model_of(values: Floats, mask: Mask, buffers: Floats = NO_BUFFERS) -> ModelState:
    return ModelState.of_values(np.asarray(values, np.float32), mask, buffers)


def random_model(layout: ParameterLayout, seed: int, density: float = 0.5) -> ModelState:
    rng = np.random.default_rng(seed)
    mask = rng.random(layout.n) < density
    values = rng.normal(0, 0.05, int(mask.sum())).astype(np.float32)
    return model_of(values, mask, rng.random(layout.b, np.float32))


def near(reference: Reference, seed: int, step: float = 1e-3, pruned: float = 0.0, regrown: float = 0.0) -> ModelState:
    """A model that has moved a little since the reference, along its drift if it has one."""
    rng = np.random.default_rng(seed)
    old = reference.model
    w = old.w + (rng.normal(0, step, old.w.shape) * (1 + 9 * rng.random(old.w.shape) ** 4)).astype(np.float32)
    if reference.drift is not None:
        w[old.mask] += np.float32(0.7) * reference.drift
    mask = np.where(old.mask, rng.random(w.shape) >= pruned, rng.random(w.shape) < regrown)
    if np.array_equal(mask, old.mask):
        mask = old.mask
    buffers = (old.buffers * np.float32(1.01)).astype(np.float32)
    return model_of(w[mask].astype(np.float32), mask, buffers)


def reference_of(layout: ParameterLayout, seed: int, density: float = 0.5, drift: bool = True) -> Reference:
    model = random_model(layout, seed, density)
    moved = np.random.default_rng(seed + 1).normal(0, 2e-3, model.nonzero).astype(np.float32)
    return Reference(model, layout, moved if drift else None)


@dataclass
class Case:
    """A message, the network that it is of, and what its receiver holds."""

    sent: Message
    layout: ParameterLayout
    reference: Reference | None = None


def combinations() -> Iterator[tuple[str, Case]]:
    """Every kind of message that is sent, of a small network of several tensors."""
    for b in (0, 7):
        layout = layout_of(buffers=[("running", (b,))] if b else [])
        for density in (0.0, 0.02, 0.5, 1.0):
            model = random_model(layout, 1, density)
            vector = {"trend": model.w, "zeros": np.zeros(layout.n, np.float32)}
            yield f"model b={b} density={density}", Case(Message(Kind.MODEL, 3, model), layout)
            kept = Message(Kind.CHECKPOINT, 4, model, memory=vector)
            yield f"checkpoint b={b} density={density}", Case(kept, layout)
            plain = Message(Kind.BROADCAST, 0, model, remember=density > 0.4)
            yield f"first broadcast b={b} density={density}", Case(plain, layout)
        for drift in (False, True):
            for masks, change in _CHANGES.items():
                for kind in (Kind.BROADCAST, Kind.UPDATE):
                    reference = reference_of(layout, 5, 1.0 if masks == "purged" else 0.5, drift)
                    if kind == Kind.UPDATE and b:  # both with and without a mean step of its own
                        own = np.random.default_rng(3).normal(0, 2e-3, reference.model.nonzero).astype(np.float32)
                        reference = reference.with_trend(model_of(own, reference.model.mask))
                    message = _travelling(kind, near(reference, 6, **change))
                    if kind == Kind.UPDATE and drift:
                        message = replace(message, memory={"score": random_model(layout, 8, 1.0).w})
                    yield f"{kind.name.lower()} b={b} drift={drift} {masks}", Case(message, layout, reference)


_CHANGES: Mapping[str, Mapping[str, float]] = {
    "same mask": {},
    "nested": {"pruned": 0.2},
    "purged": {"pruned": 0.9},
    "all pruned": {"pruned": 1.0},
    "regrown": {"pruned": 0.1, "regrown": 0.1},
    "all regrown": {"regrown": 1.0},
}


def _travelling(kind: Kind, model: ModelState) -> Message:
    if kind == Kind.BROADCAST:
        return Message(kind, 300, model, remember=True)
    return Message(kind, 300, model, 17, 1234, {"loss": 0.25, "seconds": 1.5, "native": 1.0, "a b": -0.5})


COMBINATIONS = dict(combinations())

# Any model and any reference -----------------------------------------------------------------------------------------

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
ordinary = st.floats(-2, 2, width=32)
names = st.text(st.characters(codec="ascii"), min_size=1, max_size=64)


def vectors(size: int) -> st.SearchStrategy[Floats]:
    return npst.arrays(np.float32, size, elements=finite) | npst.arrays(np.float32, size, elements=ordinary)


def masks(n: int) -> st.SearchStrategy[Mask]:
    return st.just(np.ones(n, np.bool_)) | st.just(np.zeros(n, np.bool_)) | npst.arrays(np.bool_, n)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any message that may be sent, and perhaps what its receiver holds."""
    shapes = draw(st.lists(npst.array_shapes(min_dims=0, max_dims=3, max_side=5), min_size=1, max_size=3))
    b = draw(st.integers(0, 5))
    layout = layout_of([(f"p{i}", shape) for i, shape in enumerate(shapes)], [("running", (b,))] if b else [])
    mask = draw(masks(layout.n))
    model = model_of(draw(vectors(int(mask.sum()))), mask, draw(vectors(b)))
    kind = draw(st.sampled_from([Kind.BROADCAST, Kind.UPDATE, Kind.MODEL, Kind.CHECKPOINT]))
    message = Message(
        kind,
        draw(st.integers(0, 2**63 - 1)),
        model,
        draw(st.integers(0, 2**63 - 2)) if kind == Kind.UPDATE else SERVER,
        draw(st.integers(1, 2**63 - 1)) if kind == Kind.UPDATE else 0,
        draw(st.dictionaries(names, finite, max_size=3)),
        draw(st.dictionaries(names, vectors(layout.n), max_size=2)) if kind == Kind.CHECKPOINT else {},
        draw(st.booleans()) if kind == Kind.BROADCAST else False,
    )
    if kind not in (Kind.BROADCAST, Kind.UPDATE) or draw(st.booleans()):
        return Case(message, layout)
    old = draw(st.just(mask) | masks(layout.n))
    k = int(old.sum())
    values = draw(vectors(k))
    if draw(st.booleans()):  # close to the message's own
        values = np.nextafter(model.at(old), values)
    drift = draw(st.none() | vectors(k))
    reference = Reference(model_of(values, old, draw(vectors(b))), layout, drift)
    if draw(st.booleans()):
        reference = reference.with_trend(model_of(draw(vectors(k)), old))
    return Case(message, layout, reference)
