"""Reports and metrics of several workers as one."""

from __future__ import annotations

from typing import Any

from servestate.runtime.router.process.merging import NOTHING, Past, merged, with_predecessor
from servestate.runtime.router.records.families import FAMILIES
from servestate.runtime.router.records.metrics import merge


def counted(assigned: int, inflight: int = 0, weight: int = 90) -> dict[str, Any]:
    return {
        "weight": weight,
        "assigned": assigned,
        "inflight": inflight,
        "statuses": {"2xx": assigned, "5xx": 1},
        "latency_ms": {"bounds": [5, 10], "counts": [assigned, 0, 1], "sum": 1.5},
    }


def report(version: int = 1, config: int = 1, **more: Any) -> dict[str, Any]:
    entities = more.pop("entities", {"a": counted(10, 1)})
    endpoint = {"config_version": config, "limited": 2, "entities": entities}
    return {
        **NOTHING,
        "table_version": version,
        "connections": 3,
        "endpoints": {"e": endpoint},
        "replicas": {"a#0": {"inflight": 1, "state": "healthy"}},
        "books": {"access_log_error": None, "dropped": {"usage": 1}, "usage": []},
        **more,
    }


def test_counts_are_summed_and_what_is_no_count_is_not() -> None:
    found = merged([report(), report()])
    assert found["connections"] == 6
    assert found["endpoints"]["e"]["limited"] == 4
    entity = found["endpoints"]["e"]["entities"]["a"]
    assert (entity["weight"], entity["assigned"], entity["inflight"]) == (90, 20, 2)
    assert entity["latency_ms"] == {"bounds": [5, 10], "counts": [20, 0, 2], "sum": 3.0}
    assert found["replicas"]["a#0"]["inflight"] == 2
    assert found["books"]["dropped"] == {"usage": 2}


def test_the_lowest_version_and_any_error_count() -> None:
    found = merged([report(8, 4), report(7, 3, table_error="bad"), report(9, 5, tls_error="expired")])
    assert (found["table_version"], found["endpoints"]["e"]["config_version"]) == (7, 3)
    assert (found["table_error"], found["tls_error"], found["access_error"]) == ("bad", "expired", None)


def test_an_endpoint_that_one_of_them_has_not_yet_is_there() -> None:
    new = report()
    new["endpoints"]["new"] = {"config_version": 1, "limited": 0, "entities": {}}
    assert set(merged([report(), new])["endpoints"]) == {"e", "new"}


def test_the_worst_that_a_worker_says_of_a_replica_is_reported() -> None:
    ejected = {"inflight": 2, "state": "ejected", "reason": "connect"}
    found = merged([report(), report(replicas={"a#0": ejected, "b#0": {"inflight": 5, "state": "trial"}})])
    assert found["replicas"]["a#0"] == {**ejected, "inflight": 3}
    assert found["replicas"]["b#0"]["inflight"] == 5


def test_tokens_are_summed_by_whose_they_are() -> None:
    def used(requester: str, tokens: int) -> dict[str, Any]:
        whose = {"endpoint": "e", "entity": "a", "requester": requester, "estimated": False}
        return {**whose, "requests": 1, "input_tokens": tokens, "output_tokens": 1}

    def books(*rows: dict[str, Any]) -> dict[str, Any]:
        return {"access_log_error": None, "dropped": {}, "usage": list(rows)}

    one, other = report(books=books(used("u", 5), used("v", 7))), report(books=books(used("u", 6)))
    usage = {row["requester"]: row for row in merged([one, other])["books"]["usage"]}
    assert (usage["u"]["input_tokens"], usage["u"]["requests"], usage["v"]["input_tokens"]) == (11, 2, 7)
    assert usage["u"]["estimated"] is False


def test_what_the_dead_had_counted_stays_and_what_they_were_doing_does_not() -> None:
    past = Past()
    past.told("report", report(entities={"a": counted(10, 4)}))
    past.settle()
    past.settle()  # nothing is counted twice
    entity = merged([report()], [past.report])["endpoints"]["e"]["entities"]["a"]
    assert (entity["assigned"], entity["inflight"], entity["statuses"]["2xx"]) == (20, 1, 20)
    past.told("report", report(entities={"a": counted(5)}))
    past.settle()
    assert merged([report()], [past.report])["endpoints"]["e"]["entities"]["a"]["assigned"] == 25


def test_of_the_dead_no_turns_by_other_weights_and_no_endpoint_that_is_gone() -> None:
    past = Past()
    past.told("report", report(entities={"a": counted(10, weight=50), "gone": counted(3)}))
    past.settle()
    found = merged([report()], [past.report, {"endpoints": {"forgotten": report()["endpoints"]["e"]}}])
    assert set(found["endpoints"]) == {"e"}
    entities = found["endpoints"]["e"]["entities"]
    assert set(entities) == {"a"}
    assert (entities["a"]["assigned"], entities["a"]["statuses"]["2xx"]) == (10, 20)


def test_nobody_routes_by_nothing() -> None:
    found = merged([])
    assert (found["table_version"], found["table_error"], found["replicas"]) == (None, None, {})


def test_what_the_replaced_router_does_counts_until_it_is_over() -> None:
    before = report(6, replicas={"a#0": {"inflight": 4, "state": "healthy"}, "old#0": {"inflight": 1}})
    found = with_predecessor(report(7), before)
    assert (found["table_version"], found["connections"]) == (6, 6)
    assert {name: one["inflight"] for name, one in found["replicas"].items()} == {"a#0": 5, "old#0": 1}
    assert found["endpoints"]["e"]["entities"]["a"]["assigned"] == 10  # its counts are its own
    over = with_predecessor(report(7), NOTHING)
    assert (over["table_version"], over["replicas"]) == (7, report()["replicas"])


def test_counters_never_fall_and_gauges_of_the_dead_are_gone() -> None:
    def snapshot(requests: int) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {name: [] for name in FAMILIES}
        found["servestate_requests_total"] = [[["e", "a", "200", "split"], requests]]
        found["servestate_inflight"] = [[["e", "a"], 3]]
        return found

    past = Past()
    past.told("metrics", snapshot(10))
    past.settle()
    found = merge([snapshot(1), past.snapshot])
    assert found["servestate_requests_total"] == [[["e", "a", "200", "split"], 11]]
    assert found["servestate_inflight"] == [[["e", "a"], 3]]
