"""T7: several applies at once. One works, the others are told so; nothing is doubled or lost."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.cli.harness import Site, bundle, local
from tests.cli.sweep import check_converged

pytestmark = pytest.mark.slow  # each waits for an engine, a lock or a clock

ROUNDS = 12


def race(site: Site, wanted: list[int]) -> dict[int, list[tuple[int, str, str]]]:
    """Apply these splits at the same time, from a file each; the endings by split."""
    for weight in set(wanted):
        endpoints = {"e": {"a": local("1", weight), "b": local("2", 100 - weight)}}
        (site.folder / f"{weight}.yaml").write_text(bundle(endpoints))
    started = [(w, site.start("apply", "--auto-approve", "-f", f"{w}.yaml")) for w in wanted]
    endings: dict[int, list[tuple[int, str, str]]] = {}
    for weight, process in started:
        out, err = process.communicate(timeout=60)
        endings.setdefault(weight, []).append((process.returncode, out, err))
    return endings


def prepare(site: Site) -> None:
    """A site with a first apply behind it: before, every apply would mint a lineage of its own, and all but
    one could be refused for that."""
    site.configure({"e": {"a": local("1", 0), "b": local("2", 100)}})
    site.apply()
    (site.folder / "endpoints.yaml").unlink()


def check_race(site: Site, endings: dict[int, list[tuple[int, str, str]]]) -> None:
    """Each ended as it may, the journal has no gap and no repeat, the state is one of those wanted."""
    for code, out, err in (ending for found in endings.values() for ending in found):
        assert code in (0, 3, 6), (code, out, err)
        assert code != 6 or ("SS406 the state is locked by" in err and "pid " in err), err
        assert code != 3 or "Nothing was changed" in err, err
    serials = [serial for serial, _, _ in site.journal()]
    assert serials == list(range(1, len(serials) + 1))
    assert site.state().serial == len(serials)
    weight = site.state().endpoints["e"].targets[0].weight
    # One of them has won: whoever has the lock first has planned against what it finds.
    assert weight in {w for w, found in endings.items() if any(code == 0 for code, _, _ in found)}
    (site.folder / "endpoints.yaml").unlink(missing_ok=True)
    (site.folder / "endpoints.yaml").write_text((site.folder / f"{weight}.yaml").read_text())
    for other in endings:
        (site.folder / f"{other}.yaml").unlink()
    check_converged(site, {"e": {"a": local("1"), "b": local("2")}})


def test_a_race(site: Site) -> None:
    prepare(site)
    check_race(site, race(site, [10, 10, 20, 30]))


@pytest.mark.slow
def test_many_races(site: Site, seeded: random.Random) -> None:
    prepare(site)
    for _ in range(ROUNDS):
        crowd = seeded.randrange(2, 9)
        check_race(site, race(site, [seeded.randrange(1, 100) for _ in range(crowd)]))


def test_the_same_saved_plan_at_once(site: Site, tmp_path: Path) -> None:
    site.configure({"e": {"a": local("1", 90), "b": local("2", 10)}})
    site.run("plan", "--out", "plan.json").ok()
    started = [site.start("apply", "plan.json") for _ in range(4)]
    codes = []
    for process in started:
        process.communicate(timeout=60)
        codes.append(process.returncode)
    assert codes.count(0) == 1
    assert set(codes) <= {0, 3, 6}
    assert [event for _, event, _ in site.journal()].count("LaunchIntended") == 2
    check_converged(site, {"e": {"a": local("1"), "b": local("2")}})


def test_first_applies_at_once(site: Site) -> None:
    # Safe, though perhaps nobody wins: the one with the lock may not be the one whose lineage was first.
    site.write("")
    (site.folder / "endpoints.yaml").unlink()
    endings = race(site, [10, 20, 30])
    codes = [code for found in endings.values() for code, _, _ in found]
    assert set(codes) <= {0, 3, 6}
    assert codes.count(0) <= 1
    assert len(site.alive()) == 2 * codes.count(0)
    assert site.run("apply", "--auto-approve", "-f", "20.yaml").code == 0
    assert site.doubles() == ""
