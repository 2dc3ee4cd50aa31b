"""Which header fields pass the router. Everything else stays behind; there is no deny list to forget one in.

Hop-by-hop fields, `Authorization`, `X-Forwarded-*`, request ids of the caller's and whatever controls an
engine are absent from both tables on purpose. `Content-Type` and the framing of requests are always ours.
"""

from __future__ import annotations

TO_UPSTREAM: dict[bytes, bytes] = {
    name.lower(): name for name in (b"Accept", b"User-Agent", b"traceparent", b"tracestate")
}
"""Lower-case name -> the spelling sent. `Accept-Encoding` is absent: event streams must stay readable."""

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

REQUEST_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"})
ANSWER_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection", b"retry-after"})
