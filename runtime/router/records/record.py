"""What became of one request, as metrics, logs and records of usage see it.

The exchange fills it in on the way; whoever keeps books reads it once, at the end, and must not hold up the
loop with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servestate.planner.access import Caller
    from servestate.runtime.router.messages.body import Kind
    from servestate.runtime.router.routing import LiveEndpoint, LiveEntity


class Usage:
    """Tokens of one request. `estimated` where the model's server did not say, or was not heard to its
    end."""

    __slots__ = ("completion", "estimated", "prompt")

    def __init__(self, prompt: int, completion: int, estimated: bool = False) -> None:
        self.prompt = prompt
        self.completion = completion
        self.estimated = estimated

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Usage):
            return NotImplemented
        return (self.prompt, self.completion, self.estimated) == (
            other.prompt,
            other.completion,
            other.estimated,
        )

    @property
    def total(self) -> int:
        """Both together."""
        return self.prompt + self.completion


class Record:
    """One request that was taken on, from its last byte in to the last byte of its answer.

    `how` is `split`, `direct` (the request named its entity), `fallback` (another than the split's answered)
    or `mirror` (a copy). `entity` and `replica` are those that answered, or were tried last; `failed` holds
    (entity, reason) of each attempt before, so there were `len(failed) + 1` of them if any replica was
    reached. Times are seconds: `began` by `time.perf_counter`, `wall` by `time.time`; `first_s` from there to
    the first content passed on (-1 = none), `total_s` to the end, `queue_s` of it spent waiting for a turn,
    `own_s` our own work. `status` is what the client was told, 0 where it left before; `code` the error's
    code, "" where all went well. `cut` says why an answer broke off that had begun, `gone` that the client
    left first. `sent` counts bytes of the request's body, `received` those of the answer, `chunks` the pieces
    of a stream. `request` and `answer` hold the bodies where the endpoint records payloads and this one was
    chosen; `span` is its trace and span, once they are told upstream; `usage_context` and
    `client_request_id` are the caller's own words.
    """

    # On the class, not set one by one for each request: most stay as they are.
    caller: Caller | None = None
    """None where no tokens are declared."""
    replica = ""
    failed: tuple[tuple[str, str], ...] = ()
    streaming = False
    wall: float = 0.0
    total_s: float = 0.0
    queue_s: float = 0.0
    own_s: float = 0.0
    first_s = -1.0
    status = 0
    code: str = ""
    cut: str = ""
    gone = False
    sent: int = 0
    received: int = 0
    chunks: int = 0
    usage: Usage | None = None
    response_model = ""
    traceparent = b""
    span: tuple[int, int] | None = None
    request: bytes | None = None
    answer: bytes | None = None
    client_request_id = ""
    usage_context: dict[str, Any] | None = None

    def __init__(
        self,
        request_id: bytes,
        endpoint: LiveEndpoint,
        entity: LiveEntity,
        kind: Kind,
        how: str,
        began: float,
    ) -> None:
        self.request_id = request_id
        self.endpoint = endpoint
        self.entity = entity
        self.kind = kind
        self.how = how
        self.began = began
