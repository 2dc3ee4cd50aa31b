"""TLS of a listener: its certificate and key, from files that are looked at again and again.

A pair that cannot be used is refused and the one in use stays. Both files are read once and what was read is
tried on a context of its own first: a pair that is exchanged meanwhile, file by file, is never half in use.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.runtime.file_stamps import reason, stamp_after, stamp_of


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: a certificate with its chain, and its key."""

    cert: Path
    key: Path


class Certificate:
    """The pair in use and why the newest one is not (`error`). `context` stays the same for as long as the
    listener does; connections made after a new pair came into use get that one. Owned by the loop; `poll` is
    called by its sweep."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises InvalidInput SS640."""
        self._files = files
        self._seen = self._stamps()
        self.error: str | None = None
        self.context = _empty_context()
        self.context.sni_callback = self._serve_newest
        try:
            self._newest = _loaded(files)
            _load(files, self.context)  # it has to have one itself for a handshake to begin
        except (OSError, ValueError) as error:
            what = f"the certificate and key of a listener cannot be used: {_why(files, error)}"
            fix = "give PEM files that belong together, readable by this user; the key without a passphrase"
            raise InvalidInput([Diagnostic("SS640", what, fix)]) from None

    def _serve_newest(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in the middle of every handshake."""
        connection.context = self._newest

    def poll(self) -> None:
        """Look at the files; take up a new pair."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self._newest = _loaded(self._files)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
                self._seen = stamp_after(error, stamps[0]), stamps[1]
            self.error = _why(self._files, error)
        else:
            self.error = None

    def _stamps(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        return stamp_of(self._files.cert), stamp_of(self._files.key)


def _loaded(files: TlsFiles) -> ssl.SSLContext:
    """A context of its own for the pair: one that had another would keep that for each kind of key. Raises
    as `_load`."""
    context = _empty_context()
    _load(files, context)
    return context


def _load(files: TlsFiles, context: ssl.SSLContext) -> None:
    """Have `context` use the pair. Raises OSError (ssl.SSLError among them) and ValueError."""
    with _held(files.cert.read_bytes()) as cert, _held(files.key.read_bytes()) as key:
        context.load_cert_chain(cert, key, password=_no_passphrase)


@contextmanager
def _held(content: bytes) -> Iterator[str]:
    """A path that holds just this, and that nobody else can change: OpenSSL reads keys from files only."""
    fd = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _empty_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # a client could have us compute without end
    context.set_alpn_protocols(["http/1.1"])
    return context


def _no_passphrase() -> NoReturn:
    # Without it, OpenSSL would ask on the terminal and hold up the loop.
    raise ValueError("the key asks for a passphrase")


def _why(files: TlsFiles, error: Exception) -> str:
    """For people; nothing of what the files hold."""
    if isinstance(error, ssl.SSLError):
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"{files.key} is not the key of {files.cert}"
        return (
            f"{files.cert} and {files.key}: no usable PEM certificate and key ({error.reason or 'not PEM'})"
        )
    return (
        reason(Path(error.filename), error) if isinstance(error, OSError) and error.filename else str(error)
    )
