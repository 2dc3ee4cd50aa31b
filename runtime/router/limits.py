"""Every budget of the data path in one value, so that a test can shrink any of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from servestate.runtime.router.balance.policy import HealthPolicy
from servestate.runtime.router.guards.egress import GLOBAL_ONLY, Egress

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds. What goes over a budget ends in an explicit answer or a close,
    never in waiting without end or in memory that grows."""

    head_bytes: int = 32 * KIB
    head_fields: int = 100
    target_bytes: int = 8 * KIB
    body_bytes: int = 16 * MIB
    large_bytes: int = 64 * KIB
    """A larger body is asked for, and room for it taken, only once its head was found to be good."""
    buffered_bytes: int = 256 * MIB
    """All request bodies beyond `large_bytes` together; at least `body_bytes`."""
    passed_bytes: int = 256 * KIB
    """A larger body goes on before it is whole, where nothing needs the whole of it."""
    passing_bytes: int = 512 * KIB
    """What may be held of one that goes on: what was read at once, and what its upstream has not taken."""
    external_body_bytes: int = 4 * MIB
    """The serving API's bound for bodies to an external model."""
    error_body_bytes: int = 64 * KIB
    """How much of an upstream's error answer is read for its message."""
    error_body_s: float = 2.0
    """How long the rest of an error answer is waited for."""
    guarded_answer_bytes: int = 8 * MIB
    """An answer that a guard has to see whole is refused beyond this size."""
    guard_s: float = 30.0
    """How long a guard may look at a request or an answer."""
    drain_bytes: int = 16 * MIB
    """How much is read and thrown away, within `linger_s`, after an early answer: closing on what was not
    read would destroy it, and a client that was told no would only see its connection break."""
    ahead_bytes: int = 64 * KIB
    """Read ahead of the request in flight; beyond it the client is not read."""
    write_buffer_bytes: int = 64 * KIB
    sse_line_bytes: int = MIB
    """A longer line of an event stream is passed on in pieces."""
    informational: int = 16
    """1xx answers before the final one."""

    header_s: float = 10.0
    """From a request's first byte to the end of its head, in total."""
    body_grace_s: float = 10.0
    body_bytes_per_s: int = 16 * KIB
    """A body has `body_grace_s` plus the time that this rate needs for what has arrived."""
    prompt_s: float = 1.0
    """An upstream that gives up on a body of which nothing came for longer is not to blame."""
    idle_s: float = 60.0
    upstream_idle_s: float = 4.0
    """Below the 5 s after which common engine servers close idle sockets, so reuse rarely races a close."""
    upstream_trust_s: float = 0.5
    """A socket idle for longer is looked at for an unseen close before it is used again."""
    connect_s: float = 5.0
    request_s: float = 120.0
    """To the first byte of the answer, all attempts together."""
    peek_s: float = 15.0
    """How long a good status without content is held back, so that a dead stream is still a clean error."""
    management_s: float = 600.0
    """As `request_s` and `stall_s` for the management API: what it starts may load for minutes unheard."""
    stall_s: float = 60.0
    """Without progress of an answer that has begun, in either direction."""
    linger_s: float = 2.0
    drain_s: float = 30.0
    """How long requests in flight may take to end once the router was asked to stop."""
    farewell_s: float = 1.0
    """How long connections between two requests are then kept: a request that is on its way already is still
    answered, with `Connection: close`, instead of meeting a closed socket."""
    worker_start_s: float = 60.0
    """How long one of several workers may take to be prepared, and then to answer, before it is killed: many
    that start at once on few cores take a second each."""
    tick_s: float = 0.25
    """How often deadlines are looked at; one sweep for all sockets instead of a timer per request."""
    table_poll_s: float = 0.05

    client_sockets: int = 4096
    inflight: int = 4096
    """Requests to models under way at once; those beyond are told to come again before anything is done for
    them. Each may wait in its upstream's queue, so this bounds how long they do."""

    egress: Egress = GLOBAL_ONLY
    """Where connections to external entities may go beyond global addresses."""

    health: HealthPolicy = field(default_factory=HealthPolicy)
    """When a replica is probed, ejected and tried again."""
