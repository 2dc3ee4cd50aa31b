"""The words of daemons, as errors for people."""

from __future__ import annotations

import pytest

from servestate.providers.docker import refusals

SAID = [
    (500, 'could not select device driver "nvidia" with capabilities: [[gpu]]', "SS512"),
    (404, "No such image: x@sha256:aa", "SS530"),
    (400, 'invalid mount config for type "bind": bind source path does not exist: /nowhere', "SS532"),
    (
        500,
        "driver failed programming: listen tcp4 10.9.9.9:0: bind: cannot assign requested address",
        "SS532",
    ),
    (404, "network models not found", "SS532"),
    (500, "unable to find user vllm: no matching entries in passwd file", "SS532"),
    (500, "mkdir /var/lib/docker/overlay2/x: no space left on device", "SS534"),
    (400, "anything that it does not understand", "SS532"),
]


@pytest.mark.parametrize(("status", "message", "code"), SAID)
def test_what_will_not_go_away_is_said_with_its_cause(status, message, code):
    error = refusals.explained(status, message, "Docker")
    assert error is not None
    assert (error.code, message in error.what, bool(error.fix)) == (code, True, True)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (500, "driver failed programming: Bind for 127.0.0.1:32770 failed: port is already allocated"),
        (500, "listen tcp4 127.0.0.1:32770: bind: address already in use"),
        (500, "context deadline exceeded"),
        (503, "said by the proxy"),
    ],
)
def test_what_may_pass_is_tried_again(status, message):
    assert refusals.explained(status, message, "Docker") is None
