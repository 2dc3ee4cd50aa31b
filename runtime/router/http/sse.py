"""Server-sent events as they pass by: whole lines only, and nothing that breaks a client's line reader.

An unfinished line is of no use to a client, so holding it back costs no time; in return a broken stream
always stops at a line's end, where an error event can follow, and no character is ever cut in two.
"""

from __future__ import annotations

from typing import Final

from servestate.runtime.router import scan

find: Final = scan.find

# Line ends to `str.splitlines`, which MLflow's client uses: inside JSON text they become escapes.
_LINE_ENDS: Final = ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"))
_TAIL: Final = 32  # bytes: enough for the end of the last event


class EventStream:
    """One stream, from its first byte to its last. `between` two lines nothing is held back; `passed` is the
    last chunk that was passed on as it came, framing included, if nothing else was since."""

    __slots__ = ("_held", "_last", "_line_bytes", "between", "passed")

    def __init__(self, line_bytes: int) -> None:
        self._line_bytes = line_bytes
        self._held = b""
        self.between = True
        self._last = b"\n\n"
        self.passed = b""

    def feed(self, data: bytes) -> bytes:
        """What of the stream can be passed on now."""
        self._remember()
        if self._held or data[-1:] != b"\n":
            data = self._hold(self._held + data)
            if not data:
                return b""
        if not data.isascii() and (find(data, b"\xe2\x80") >= 0 or find(data, b"\xc2\x85") >= 0):
            for raw, escaped in _LINE_ENDS:
                data = data.replace(raw, escaped)
        if find(data, b"\n:") >= 0 or data[:1] == b":":
            data = self._without_comments(data)
        if len(data) > _TAIL:
            self._last = data
        elif data:
            self._last = self._last[-_TAIL:] + data
        return data

    def passes(self, chunk: bytes) -> bool:
        """Whether a whole chunk, framing included, can be passed on untouched; if so, it was."""
        if not self.between or not _is_clean(chunk):
            return False
        self.passed = chunk
        return True

    def finish(self) -> bytes:
        """What was held back when the upstream ended its stream properly."""
        data, self._held = self._held, b""
        self.between = True
        return data

    def said_done(self) -> bool:
        """Whether the last event passed on is the `[DONE]` of the OpenAI surface."""
        self._remember()
        return self._last.rstrip().endswith(b"data: [DONE]")

    def before_error(self) -> bytes:
        """What must precede one more event so that it stands alone."""
        self._remember()
        if self._last.endswith((b"\n\n", b"\n\r\n", b"\r\n\r\n")):
            return b""
        return b"\n" if self._last.endswith(b"\n") else b"\n\n"

    def _remember(self) -> None:
        """The end of what was passed on."""
        if self.passed:
            self._last, self.passed = self.passed[:-2], b""

    def _hold(self, data: bytes) -> bytes:
        """Keep the unfinished line of `data` back, unless it is longer than a line may be."""
        cut = data.rfind(b"\n") + 1
        if len(data) - cut > self._line_bytes:
            # Not between the bytes of a character that is to be escaped.
            cut = len(data) - (2 if data.endswith(b"\xe2\x80") else data.endswith((b"\xe2", b"\xc2")))
        self._held = data[cut:]
        self.between = not self._held
        return data[:cut]

    def _without_comments(self, data: bytes) -> bytes:
        """Comments (`: ping`) break MLflow's reader; the empty line after one keeps the connection alive."""
        started = 0 if self._last.endswith(b"\n") else 1  # the first line may be the rest of another
        lines = enumerate(data.split(b"\n"))
        return b"\n".join(line for i, line in lines if i < started or not line.startswith(b":"))


def _is_clean(chunk: bytes) -> bool:
    """Whether a chunk holds whole lines, and none that must not pass as it is."""
    return (
        chunk[-3:] == b"\n\r\n"
        and find(chunk, b"\n:") < 0  # also right behind the size's line
        and (chunk.isascii() or (find(chunk, b"\xe2\x80") < 0 and find(chunk, b"\xc2\x85") < 0))
    )
