"""Labels and names of containers."""

from __future__ import annotations

import itertools
import re

import pytest

from servestate.planner.address import InstanceAddress
from servestate.planner.launch import Placement
from servestate.providers.docker import marks
from servestate.providers.labels import Worn
from servestate.providers.protocol import Marks

LINEAGE = "861c0df2-6a5f-4a0e-9d3f-2f6f8f0f8a11"
ADDRESS = InstanceAddress("chat", "current", "3f9a1c27", 1)


def worn(placement):
    return Worn(Marks(LINEAGE, ADDRESS, 7, "an-op", placement), "a-nonce", 8000)


@pytest.mark.parametrize(
    "placement", [Placement("a"), Placement("a", ("0", "GPU-5")), Placement("a", ("0",), 0.5)]
)
def test_labels_tell_all_that_was_launched(placement):
    labels = marks.to_labels(worn(placement))
    assert all(name.startswith("io.servestate.") for name in labels)
    assert marks.from_labels("a", labels) == worn(placement)


def test_what_lacks_a_mark_or_has_a_strange_one_is_not_ours():
    labels = marks.to_labels(worn(Placement("a")))
    for name in labels.keys() - {marks.REVISION}:
        assert marks.from_labels("a", {k: v for k, v in labels.items() if k != name}) is None
    for name, value in ((marks.ADDRESS, "chat"), (marks.GENERATION, "x"), (marks.PORT, "")):
        assert marks.from_labels("a", {**labels, name: value}) is None


def test_the_digest_is_of_our_labels_only():
    labels = marks.to_labels(worn(Placement("a")))
    assert marks.digest(labels) == marks.digest({**labels, "other": "x"})
    assert marks.digest(labels) != marks.digest({**labels, "io.servestate.later": "x"})


def test_a_plain_name_says_it_all():
    assert marks.container_name(LINEAGE, ADDRESS) == "servestate-861c0df2-chat-current-3f9a1c27-1"


def test_different_addresses_never_share_a_name():
    parts = ("a", "b", "a-b", "b-c", "c", "x" * 40, "x" * 41, "a_b", "a.b", "a b", "ä")
    addresses = [InstanceAddress(e, n, "3f", r) for e, n in itertools.product(parts, parts) for r in (0, 1)]
    names = {marks.container_name(LINEAGE, one) for one in addresses}
    assert len(names) == len(addresses)
    assert all(re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", name) for name in names)
    assert max(map(len, names)) < 128
