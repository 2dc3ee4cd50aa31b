"""The header of a safetensors file: 8 bytes of length, then JSON with type, shape and place of each tensor.

Source: the format's description in the safetensors repository.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import prod
from typing import Any

from servestate.providers.model_files import MAX_HEADER, Span, Weights, not_a_model, parse_object

_LENGTH = 8
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


def read_safetensors(files: Iterable[Span]) -> Weights:
    """The tensors of all `files` summed. Raises PermanentError SS523 for a file that is no safetensors file
    or ends before its tensors do."""
    size_of: Counter[str] = Counter()
    parameters = 0
    for file in files:
        for dtype, count, size in _tensors(file):
            size_of[dtype] += size
            parameters += count
    most = max(size_of, key=lambda dtype: size_of[dtype], default="")
    return Weights(sum(size_of.values()), parameters, _DTYPES.get(most, most.lower()))


def _tensors(file: Span) -> list[tuple[str, int, int]]:
    """Type, values and bytes of each tensor."""
    head = file.read(0, _LENGTH)
    length = int.from_bytes(head, "little")
    if len(head) < _LENGTH or length > MAX_HEADER:
        raise not_a_model(file.name, f"its header would have {length:,} bytes")
    if _LENGTH + length > file.size:
        raise not_a_model(file.name, "it ends within its header")
    header = parse_object(file.read(_LENGTH, length), file.name)
    header.pop("__metadata__", None)
    room = file.size - _LENGTH - length
    return [_tensor(name, entry, room, file) for name, entry in header.items()]


def _tensor(name: str, entry: Any, room: int, file: Span) -> tuple[str, int, int]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            if not all(type(side) is int and 0 <= side < 1 << 40 for side in shape):
                raise not_a_model(file.name, f"tensor {name[:80]!r} has an impossible shape")
            if not 0 <= begin <= end:
                raise not_a_model(file.name, f"tensor {name[:80]!r} ends before it begins")
            if end > room:
                raise not_a_model(file.name, f"it ends before its tensor {name[:80]!r} does")
            return dtype, prod(shape), end - begin
        case _:
            raise not_a_model(file.name, f"its header does not describe tensor {name[:80]!r}")
