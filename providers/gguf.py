"""The head of a GGUF file: metadata and tensor descriptions, versions 2 and 3, little-endian.

Source: docs/gguf.md of the ggml repository; block sizes of the types from ggml's own table.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from servestate.providers.model_files import MAX_HEADER, Span, Weights, not_a_model

MAGIC = b"GGUF"
_CHUNK = 4 << 20  # read at once: most heads are 1 to 10 MB, nearly all of it the tokenizer
_MAX_ENTRIES = 100_000  # metadata keys, and tensors
_MAX_STRING = 4_000_000  # bytes; the longest are chat templates
_MAX_ARRAY = 2_000_000  # the largest tokenizers have about 600,000 merges
_MAX_KEPT = 4_096  # per-layer lists are kept; token lists are only counted
_ALIGNMENT = 32

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# Type number -> (name, values of a block, bytes of a block).
_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip

Scalar = int | float | bool | str
Value = Scalar | list[Scalar]


@dataclass(frozen=True, slots=True)
class ArrayLength:
    """An array that is not kept, only how long it is."""

    length: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """The metadata of a GGUF file and the sum of its tensors."""

    metadata: Mapping[str, Value | ArrayLength]
    weights: Weights


def read_gguf(file: Span) -> Gguf:
    """The head of `file`. Raises PermanentError SS523 for a file that is no GGUF file, is of another version,
    or ends before its tensors do."""
    head = _Head(file)
    if head.take(4) != MAGIC:
        raise not_a_model(file.name, "it does not begin with GGUF")
    version = head.number("I")
    if version not in (2, 3):
        raise not_a_model(file.name, f"GGUF version {version} is not 2 or 3, or its bytes are big-endian")
    tensors, entries = head.count(_MAX_ENTRIES, "tensors"), head.count(_MAX_ENTRIES, "metadata keys")
    metadata = {head.text(): head.value() for _ in range(entries)}
    weights, end = _tensors(head, tensors)
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= MAX_HEADER:
        raise not_a_model(file.name, f"an alignment of {str(alignment)[:20]} is impossible")
    begin = -(-head.at // alignment) * alignment
    if tensors and begin + end > file.size:
        raise not_a_model(file.name, f"it has {file.size:,} bytes, its tensors end at {begin + end:,}")
    return Gguf(metadata, weights)


class _Head:
    """Reads forward through the head of a file, chunk by chunk."""

    def __init__(self, file: Span) -> None:
        self._file = file
        self._buffer = b""
        self._offset = 0  # in the buffer
        self.at = 0  # in the file

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if len(self._buffer) - self._offset < size:
            self._fill(size)
        taken = self._buffer[self._offset : self._offset + size]
        self._offset += size
        self.at += size
        return taken

    def _fill(self, size: int) -> None:
        if self.at + size > MAX_HEADER:
            raise not_a_model(self._file.name, f"its head is longer than {MAX_HEADER:,} bytes")
        kept = self._buffer[self._offset :]
        more = self._file.read(self.at + len(kept), max(size, _CHUNK) - len(kept))
        if len(kept) + len(more) < size:
            raise not_a_model(self._file.name, "it ends within its head")
        self._buffer, self._offset = kept + more, 0

    def number(self, code: str) -> int:
        """One integer of a struct code."""
        (found,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return int(found)

    def count(self, most: int, what: str) -> int:
        """A count, refused above `most`."""
        found = self.number("Q")
        if found > most:
            raise not_a_model(self._file.name, f"it claims to hold {found:,} {what}")
        return found

    def text(self) -> str:
        """A string."""
        return self.take(self.count(_MAX_STRING, "bytes in a string")).decode(errors="replace")

    def value(self) -> Value | ArrayLength:
        """A metadata value. Arrays longer than any per-layer list are skipped."""
        kind = self.number("I")
        return self._array() if kind == _ARRAY else self._scalar(kind)

    def _scalar(self, kind: int) -> Scalar:
        if kind == _STRING:
            return self.text()
        code = self._code(kind)
        found: Scalar = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return found

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise not_a_model(self._file.name, f"metadata of type {kind} is not known")
        return _SCALARS[kind]

    def _array(self) -> Value | ArrayLength:
        kind = self.number("I")
        length = self.count(_MAX_ARRAY, "values in an array")
        if kind == _STRING:
            for _ in range(length):
                self.take(self.count(_MAX_STRING, "bytes in a string"))
            return ArrayLength(length)
        code = self._code(kind)
        if length > _MAX_KEPT:
            self._skip(length * struct.calcsize(f"<{code}"))
            return ArrayLength(length)
        return list(struct.unpack(f"<{length}{code}", self.take(length * struct.calcsize(f"<{code}"))))

    def _skip(self, size: int) -> None:
        while size:
            size -= len(self.take(min(size, _CHUNK)))

    def sides(self) -> list[int]:
        """The shape of a tensor."""
        dimensions = self.number("I")
        if dimensions > 8:
            raise not_a_model(self._file.name, f"a tensor of {dimensions:,} dimensions")
        return [self.count(1 << 40, "values in a row") for _ in range(dimensions)]

    def block(self) -> tuple[str, int, int]:
        """The type of a tensor."""
        kind = self.number("I")
        if kind not in _TYPES:
            raise not_a_model(self._file.name, f"tensor type {kind} is not known")
        return _TYPES[kind]


def _tensors(head: _Head, count: int) -> tuple[Weights, int]:
    """The sum of all tensors, and where in the data the last one ends."""
    size_of: Counter[str] = Counter()
    parameters = end = 0
    for _ in range(count):
        head.text()
        values = prod(head.sides())
        name, block, of_block = head.block()
        size = -(-values // block) * of_block
        size_of[name] += size
        parameters += values
        end = max(end, head.number("Q") + size)
    most = max(size_of, key=lambda name: size_of[name], default="")
    return Weights(sum(size_of.values()), parameters, most), end
