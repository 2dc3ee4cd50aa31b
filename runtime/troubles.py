"""What a running router may be unable to do: how its report calls that, what people read, what helps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trouble:
    """`what` cannot be done, as a whole sentence; `fix` is "" where the reason that is given says it."""

    what: str
    fix: str = ""

    def told(self, why: str) -> str:
        """The line for people, without an end."""
        return "; ".join(filter(None, (f"{self.what}: {why}", self.fix)))


TROUBLES: Mapping[str, Trouble] = {
    "table_error": Trouble(
        "the newest routing table is not used",
        "the one before stays in use: mend that and run servestate apply",
    ),
    "table_copy_error": Trouble(
        "the routing table has no copy", "make room, and let the user who serves write there"
    ),
    "access_error": Trouble(
        "the newest access tokens are not used",
        "those before stay in use: servestate serve --replace writes the file anew",
    ),
    "tls_error": Trouble(
        "the newest certificate is not used",
        "the one before stays in use: give PEM files that belong together, readable by the user who serves",
    ),
    "access_log_error": Trouble("the access log cannot be written"),
    "usage_error": Trouble("the usage of endpoints cannot be written"),
    "inference_tables_error": Trouble("inference tables cannot be written"),
    "traces_error": Trouble("traces cannot be sent", "see that the collector runs and takes OTLP over HTTP"),
}
"""By their keys in the router's report."""


def news(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """A line for each trouble that has begun, has another reason, or has ended; both by key, with the
    reason."""
    for key, trouble in TROUBLES.items():
        if key in now and now[key] != before.get(key):
            yield trouble.told(now[key])
        elif key in before and key not in now:
            yield f"no longer: {trouble.what}"
