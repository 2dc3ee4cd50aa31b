"""Reports and metrics of several workers as one."""

from __future__ import annotations

from typing import Any

from servestate.runtime.router.process.merging import NOTHING, Past, merged, named_in, with_predecessor
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


def used(requester: str, tokens: int, endpoint: str = "e") -> dict[str, Any]:
    whose = {"endpoint": endpoint, "entity": "a", "requester": requester, "estimated": False}
    return {**whose, "requests": 1, "input_tokens": tokens, "output_tokens": 1}


def books(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"access_log_error": None, "dropped": {"usage": 1}, "usage": list(rows)}


def test_tokens_are_summed_by_whose_they_are() -> None:
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


def test_what_the_dead_had_noted_of_usage_and_lost_stays() -> None:
    past = Past()
    for tokens in (5, 6):
        past.told("report", report(books=books(used("u", tokens), used("u", 9, "gone"))))
        past.settle()
    past.settle()
    told = merged([report(books=books(used("u", 1)))], [past.settled("report")])["books"]
    assert [(row["endpoint"], row["input_tokens"], row["requests"]) for row in told["usage"]] == [
        ("e", 12, 3)
    ]
    assert told["dropped"] == {"usage": 3}


def test_what_is_gone_from_the_table_does_not_come_back_with_its_name() -> None:
    past = Past()
    past.told("report", report(entities={"a": counted(10), "b": counted(3)}))
    past.settle()
    past.keep_report(merged([report()], [past.report])["endpoints"])
    told = merged([report(entities={"a": counted(10), "b": counted(0)})], [past.report])
    entities = told["endpoints"]["e"]["entities"]
    assert {name: one["assigned"] for name, one in entities.items()} == {"a": 10, "b": 0}
    past.keep_report({})
    assert merged([report()], [past.report])["endpoints"]["e"]["entities"]["a"]["statuses"]["2xx"] == 10


def test_of_the_dead_no_turns_by_other_weights_and_no_endpoint_that_is_gone() -> None:
    past = Past()
    past.told("report", report(entities={"a": counted(10, weight=50), "gone": counted(3)}))
    past.settle()
    gone = {**past.report, "endpoints": {"forgotten": report()["endpoints"]["e"]}}
    found = merged([report()], [past.report, gone])
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


def test_series_of_what_no_table_has_any_more_are_gone() -> None:
    lasting = {
        "servestate_requests_total": [[["e", "", "404", "refused"], 2], [["", "", "404", "refused"], 3]],
        "servestate_log_dropped_total": [[["usage"], 4]],
    }
    gone = {
        "servestate_requests_total": [[["gone", "a", "200", "split"], 9], [["e", "gone", "200", "split"], 9]],
        "servestate_fallbacks_total": [[["e", "a", "gone", "timeout"], 1]],
    }
    found: dict[str, list[Any]] = {name: [] for name in FAMILIES}
    for samples in (lasting, gone):
        for name, these in samples.items():
            found[name] = found[name] + these
    past = Past()
    past.told("metrics", found)
    past.settle()
    living = {
        "servestate_config_version": [[["e"], 1]],
        "servestate_split_assigned_total": [[["e", "a", "exact"], 1]],
    }
    past.keep_metrics(named_in([living, living]))
    assert {name: samples for name, samples in past.snapshot.items() if samples} == lasting
