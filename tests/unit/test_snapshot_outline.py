# SPDX-License-Identifier: Apache-2.0
"""Headers of weights are found in the first bytes of files, whatever these are."""

from __future__ import annotations

import struct

import pytest

from ansible.module_utils.firstlight import canary, model_files
from ansible.module_utils.firstlight.snapshots import outline
from ansible.module_utils.firstlight.snapshots.entries import Entry


class Remote:
    """A file at a source, and how much of it was read."""

    def __init__(self, name, content, size=None):
        self.content, self.read = content, 0
        self.entry = Entry(name, len(content) if size is None else size, "0" * 64, None)

    def part(self, first, count):
        assert first == self.read, "read twice"
        made = self.content[first:first + count].ljust(
            min(count, self.entry.size - first), b"\0")
        self.read += len(made)
        return made


def gguf(pairs, tensors=()):
    made = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    for key, kind, value in pairs:
        made += text(key) + struct.pack("<I", kind) + value
    for name, dimensions in tensors:
        made += text(name) + struct.pack("<I", len(dimensions))
        made += struct.pack("<%dQ" % len(dimensions), *dimensions) + struct.pack("<IQ", 0, 0)
    return made


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


WORDS = struct.pack("<IQ", 8, 200_000) + b"".join(text("word %d" % one) for one in range(200_000))
HEADER = gguf([("general.name", 8, text("x")), ("a.b", 4, b"\1\0\0\0"), ("words", 9, WORDS),
               ("scores", 9, struct.pack("<IQ", 6, 200_000) + bytes(800_000))],
              [("blk.0.weight", (4, 4)), ("blk.1.weight", (2, 2, 2))])


def test_the_end_of_a_header_is_found_where_it_is():
    assert outline.gguf_needs(HEADER) == len(HEADER)
    assert outline.gguf_needs(HEADER + bytes(1000)) == len(HEADER)
    content = canary.content(canary.GGUF)
    assert outline.gguf_needs(content) < len(content) / 100


@pytest.mark.parametrize("length", [0, 3, 7, 8, 23, 40, 1000, len(HEADER) - 1])
def test_more_is_wanted_of_a_header_that_is_not_whole(length):
    assert outline.gguf_needs(HEADER[:length]) > length or length == 0


@pytest.mark.parametrize("content", [
    b"MZ" + bytes(100), gguf([("k", 99, b"")]), gguf([("k", 9, struct.pack("<IQ", 8, 2**60))]),
    b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1), gguf([], [("t", (1,) * 9)]),
    gguf([("k", 9, struct.pack("<IQ", 9, 1) * 5)])])
def test_nothing_more_is_read_of_what_is_no_model(content):
    remote = Remote("m.gguf", content, 2**40)
    outline.header(remote.entry, remote.part)
    assert remote.read <= outline.FIRST_PART


def test_a_header_comes_in_parts_and_a_hole_stands_for_the_rest(tmp_path):
    size = 10**12
    remote = Remote("m.gguf", HEADER, size)
    begin = outline.header(remote.entry, remote.part)
    assert begin[:len(HEADER)] == HEADER
    assert len(HEADER) <= remote.read < 10 * len(HEADER)


@pytest.mark.parametrize("length", [10, outline.FIRST_PART * 3, 2**62])
def test_no_more_of_safetensors_is_read_than_their_header(length):
    remote = Remote("m.safetensors", struct.pack("<Q", length), 2**29)
    begin = outline.header(remote.entry, remote.part)
    assert len(begin) == min(max(8 + length, outline.FIRST_PART), outline.MAX_HEADER)


@pytest.mark.parametrize("name", ["m.gguf", "m.safetensors"])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_a_file_without_room_for_a_header_is_read_whole(name, size):
    remote = Remote(name, b"GGUFxxxxx"[:size])
    assert outline.header(remote.entry, remote.part) == b"GGUFxxxxx"[:size]


def test_a_model_with_holes_is_described_as_the_whole_one(tmp_path):
    name = next(one for one in canary.FILES if one.endswith("model.safetensors"))
    for source in (name, canary.GGUF):
        content = canary.content(source)
        remote = Remote(source, content)
        path = tmp_path / source.rpartition("/")[2]
        outline._sparse(str(path), outline.header(remote.entry, remote.part), len(content))
        assert path.stat().st_size == len(content)
        assert remote.read < len(content)
    described = model_files.describe(str(tmp_path / canary.GGUF))
    assert described["bytes"] == len(canary.content(canary.GGUF))
