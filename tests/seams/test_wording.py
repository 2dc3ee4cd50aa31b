"""What is said to people is true, and can be pasted."""

from __future__ import annotations

import pytest

from tests.cli.harness import ONE, Site, bundle, echo, remote

DEAD = {"1": echo("1", "--nonsense")}


@pytest.fixture
def warned(site: Site) -> Site:
    """A site whose only endpoint has no config."""
    site.write("resources: {model_serving_endpoints: {solo: {name: solo}}}\n")
    return site


def test_one_is_not_many(warned: Site) -> None:
    assert warned.run("validate").ok().out.endswith("1 endpoint, 1 warning.\n")


def test_a_strict_failure_is_no_success(warned: Site) -> None:
    strict = warned.run("validate", "--strict")
    assert (strict.code, strict.out) == (1, "")
    assert "Failed: --strict counts warnings as errors: 1 endpoint, 1 warning.\n" in strict.err


def test_to_go_on_takes_the_same_configuration(site: Site) -> None:
    site.write(bundle(ONE, versions=DEAD) + "variables: {a: {default: x}}\ntargets: {dev: {}}\n")
    arguments = ["-f", "endpoints.yaml", "--env", "dev", "--var", "a=two words"]
    failed = site.run("apply", "--auto-approve", *arguments)
    assert failed.code == 4, failed.err
    assert "Not complete: 1 step failed" in failed.err
    again = "servestate apply -f endpoints.yaml --env dev --var 'a=two words'\n"
    assert failed.err.endswith(f"To go on, run again: {again}")


@pytest.mark.parametrize("tail", ["0", "-3", "many"])
def test_at_least_one_line_of_the_log(site: Site, tail: str) -> None:
    site.configure({"solo": {"only": remote()}})
    refused = site.run("logs", "solo", f"--tail={tail}")
    assert refused.code == 64
    assert f"invalid positive number value: '{tail}'" in refused.err
