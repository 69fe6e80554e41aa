"""What can be told of a message without its network, and by ``fedsparsify inspect``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsparsify.errors import WireError
from fedsparsify.wire import Kind, Message, Reference, encode, explain
from tests.commands import call
from tests.wire import spec
from tests.wire.cases import layout_of as layout
from tests.wire.cases import near, random_model, reference_of

LAYOUT = layout([("fc", (40, 25)), ("bias", (40,))], [("running", (2,))])
MODEL = random_model(LAYOUT, 1, 0.5)
REFERENCE: Reference = reference_of(LAYOUT, 5, 0.5, True)


def test_the_sections_of_a_message_add_up_to_it() -> None:
    vectors = {"momentum": MODEL.w, "v": np.zeros(LAYOUT.n, np.float32)}
    for message, reference in (
        (Message(Kind.MODEL, 9, MODEL), None),
        (Message(Kind.CHECKPOINT, 9, MODEL, memory=vectors), None),
        (Message(Kind.BROADCAST, 2, near(REFERENCE, 1, pruned=0.3)), REFERENCE),
        (Message(Kind.UPDATE, 2, near(REFERENCE, 1), 3, 128, {"loss": 0.5}), REFERENCE),
    ):
        data = encode(message, LAYOUT, reference)
        explained = explain(data)
        assert sum(section.size for section in explained.sections) == len(data)
        assert (explained.kind, explained.round) == (message.kind.name.lower(), message.round)
        assert explained.parameters == LAYOUT.n
        assert explained.survivors in (message.model.nonzero, None)
    assert [section.name for section in explained.sections][1:4] == ["mask", "values", "buffers"]
    assert (explained.sender, explained.num_examples, explained.survivors) == ("client 3", 128, None)
    assert explained.reference == f"{REFERENCE.checksum:08x}"
    kept = explain(encode(Message(Kind.CHECKPOINT, 9, MODEL, memory=vectors), LAYOUT))
    assert [section.name for section in kept.sections][-3:-1] == ["memory 'momentum'", "memory 'v'"]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"n": spec.varint(0)}, "mask: "),
        ({"mask": spec.section(3, spec.varint(5000))}, "mask: 5000 survivors are declared of 1040 parameters"),
        ({"mask": spec.section(9, b"")}, "mask: encoding 9 is unknown"),
        ({"memory": spec.varint(0) + b"more"}, "message: 4 bytes follow the last section"),
    ],
)
def test_what_is_malformed_is_refused(changed: dict[str, bytes], why: str) -> None:
    data = spec.join({**spec.split(encode(Message(Kind.MODEL, 9, MODEL), LAYOUT)), **changed})
    with pytest.raises(WireError, match=why):
        explain(data)


def test_files_of_a_run_are_explained_on_the_command_line(tmp_path: Path) -> None:
    model = encode(Message(Kind.MODEL, 9, MODEL), LAYOUT)
    (tmp_path / "model.fsp").write_bytes(model)
    (tmp_path / "a copy of a checkpoint").write_bytes(bytes(32) + encode(Message(Kind.CHECKPOINT, 8, MODEL), LAYOUT))
    shown = call("inspect", tmp_path / "model.fsp", tmp_path / "a copy of a checkpoint")
    assert shown.code == 0
    assert "model of round 9 from server" in shown.out
    assert f"{MODEL.nonzero} left (sparsity {1 - MODEL.nonzero / LAYOUT.n:.4f})" in shown.out
    assert "checkpoint of round 8 from server" in shown.out
    assert "bits a survivor" in shown.out


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "cannot be explained (message: 0 bytes are fewer"),
        (b"# A text, which is no message at all", "this is no FedSparsify message): name a whole *.fsp file"),
        (b"FSPM\x01" + bytes(40), "version 1 is not supported"),
    ],
)
def test_a_file_that_cannot_be_explained_is_named(content: bytes | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / "file.fsp"
    if content is not None:
        path.write_bytes(content)
    shown = call("inspect", path)
    assert shown.code == 2
    assert shown.err.startswith(f"error: {path} ") and why in shown.err
    assert "Traceback" not in shown.err
