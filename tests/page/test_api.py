"""The API page: signatures that can be read, and no box with nothing in it."""

import doctest
import re
import sys
from pathlib import Path

import pytest
from docutils import nodes

from collage.page import claims

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "_ext"))

import api

NAMES = [(room, name) for room in claims() for name in api.door(room).__all__]


def test_examples():
    found = doctest.testmod(api)
    assert found.attempted and not found.failed


@pytest.mark.parametrize(("room", "name"), NAMES, ids=".".join)
def test_every_entry_can_be_read(room, name):
    blocks = [block.astext() for block in api.entry(room, name).findall(nodes.literal_block)]
    assert all(block.strip() for block in blocks)
    member = getattr(api.door(room), name)
    calls = [api.shape(room, name, member)] if callable(member) else []
    for call in [*calls, *(text for text, _ in api.methods(member))]:
        assert not re.search(r"[a-z]\w*\.\w|\b_[A-Z]|<", call), call
        assert max(map(len, call.splitlines())) <= 100, call


def test_a_method_without_a_docstring_is_its_signature_alone():
    assert list(api.docstring("")) == []
    assert len(list(api.docstring("This is a sentence.\n\n    x = 1"))) == 2
