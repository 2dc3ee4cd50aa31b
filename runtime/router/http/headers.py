"""Which header fields pass the router. Everything else stays behind; there is no deny list to forget one in.

Hop-by-hop fields, `Authorization`, `X-Forwarded-*`, request ids of the caller's and whatever controls an
engine are absent from the tables of models on purpose. The framing of requests is always ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TO_UPSTREAM: dict[bytes, bytes] = {
    name.lower(): name for name in (b"Accept", b"User-Agent", b"traceparent", b"tracestate")
}
"""Lower-case name -> the spelling sent. `Accept-Encoding` is absent: event streams must stay readable."""

TO_API: dict[bytes, bytes] = {
    name.lower(): name for name in (b"Authorization", b"Content-Type", b"Accept", b"User-Agent")
}
"""As `TO_UPSTREAM`, for the management API, which checks the caller's token itself."""

TO_CLIENT: dict[bytes, bytes] = {
    name.lower(): name
    for name in (
        b"Content-Type",
        b"Content-Encoding",
        b"Content-Language",
        b"Cache-Control",
        b"openai-model",
        b"openai-processing-ms",
        b"x-ratelimit-limit-requests",
        b"x-ratelimit-limit-tokens",
        b"x-ratelimit-remaining-requests",
        b"x-ratelimit-remaining-tokens",
        b"x-ratelimit-reset-requests",
        b"x-ratelimit-reset-tokens",
    )
}
"""Lower-case name -> the spelling sent to clients."""


def lines(fields: Iterable[tuple[bytes, bytes]], allowed: Mapping[bytes, bytes], named: set[bytes]) -> bytes:
    """The header lines of the allowed ones of `fields` (names in lower case), less those `named` by the
    Connection field, which are hop-by-hop as well (RFC 9110 section 7.6.1)."""
    return b"".join(
        b"%b: %b\r\n" % (allowed[name], value)
        for name, value in fields
        if name in allowed and name not in named
    )
