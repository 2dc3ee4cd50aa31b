"""The site's part of an endpoint's traffic, and of the router: what is read, and what it means unsaid."""

from __future__ import annotations

import pytest

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.spec.bundle import Document, load
from servestate.planner.spec.hosts import host_of, is_never_reached
from servestate.planner.spec.request import load_request
from servestate.planner.spec.site import Site
from servestate.planner.spec.traffic import TrafficPolicy


def site(text: str) -> Site:
    return load([Document("site.yaml", text)]).site


def test_everything_has_a_default() -> None:
    found = Site()
    assert (found.router.listen, found.management.listen) == ("127.0.0.1:8080", "127.0.0.1:8081")
    assert (found.router.workers, found.router.drain_s, found.router.tls) == (1, 30.0, None)
    assert (found.router.access_log, found.router.traces, found.router.egress.allow) == (None, None, ())
    health = found.router.health
    assert (health.interval_s, health.timeout_s, health.errors) == (5.0, 2.0, 5)
    assert (health.ejection_s, health.max_ejection_s) == (10.0, 300.0)
    assert not found.traffic


def test_a_policy_says_what_is_written() -> None:
    text = """
servestate:
  router: {workers: 4, tls: {cert: c.pem, key: k.pem}, access_log: {path: access.jsonl, max_bytes: 1MiB}}
  traffic:
    a:
      split: sticky
      sticky: {from: "header:X-Session", salt: s}
      fallback: {after_send: true}
      deadline_s: 5m
      limits: shadow
      mirror: {entity: e, percent: 5}
"""
    found = site(text)
    assert (found.router.workers, found.router.listen) == (4, "127.0.0.1:8080")
    assert found.router.tls is not None
    assert found.router.tls.cert == "c.pem"
    assert found.router.access_log is not None
    assert found.router.access_log.max_bytes == 2**20
    assert Site.model_validate_json(found.model_dump_json()) == found
    policy = found.traffic["a"]
    assert policy.sticky is not None
    assert policy.sticky.source == "header:X-Session"
    assert (policy.fallback.after_send, policy.deadline_s, policy.limits) == (True, 300.0, "shadow")
    assert policy.mirror is not None
    assert policy.mirror.max_inflight == 8


def test_a_listener_that_ends_tls_may_leave_this_machine_with_tokens() -> None:
    token = 'access: {tokens: [{user_name: ann, sha256: "' + "2" * 64 + '"}]}'
    beyond = "servestate: {router: {listen: '192.0.2.1:443', tls: {cert: c, key: k}}, "
    assert site(f"{beyond}{token}}}").router.host == "192.0.2.1"
    with pytest.raises(InvalidInput, match="SS198"):
        site(beyond.removesuffix(", ") + "}")


def test_a_request_has_to_fit_what_the_site_says_of_its_name() -> None:
    policy = TrafficPolicy.model_validate({"mirror": {"entity": "new", "percent": 5}})
    entity = {"entity_name": "m", "entity_version": "1"}
    body = {"name": "a", "config": {"served_entities": [{"name": "old", **entity}]}}
    with pytest.raises(InvalidInput, match="SS211"):
        load_request(body, Site(traffic={"a": policy}), "api", "a")
    assert load_request(body, Site(traffic={"b": policy}), "api", "a").endpoints
    assert load_request({"name": "a"}, Site(traffic={"a": policy}), "api", "a").endpoints


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://127.0.0.1:80/v1", "127.0.0.1"),
        ("HTTP://[::1]:80", "::1"),
        ("https://localhost./x", "localhost."),
        ("http://[::ffff:192.168.0.1]/", "::ffff:192.168.0.1"),
        ("https://models.internal", "models.internal"),
        ("ftp://127.0.0.1", ""),
    ],
)
def test_the_host_in_a_url(url: str, host: str) -> None:
    assert host_of(url) == host


def test_what_is_never_reached() -> None:
    never = ["169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254"]
    assert all(is_never_reached(host) for host in [*never, "::ffff:169.254.169.254"])
    assert not any(is_never_reached(host) for host in ["127.0.0.1", "::1", "10.0.0.1", "fd00:ec2::253", "x"])
