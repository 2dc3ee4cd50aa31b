"""Usage errors exit with 64, never with 2, which pipelines read as "there are changes"."""

from __future__ import annotations

import argparse

import pytest

from servestate.runtime.cli import main, parser
from tests.cli.harness import ONE, Site
from tests.cli.snapshots import check


def verbs() -> dict[str, argparse.ArgumentParser]:
    """Every verb that the command line knows, by name."""
    (found,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def required(verb: argparse.ArgumentParser) -> list[str]:
    """Arguments without which the verb does not start."""
    positional = (a for a in verb._actions if not a.option_strings and a.nargs not in ("?", "*"))
    return [next(iter(a.choices)) if a.choices else "x" for a in positional]


def takes_many(verb: argparse.ArgumentParser) -> bool:
    """Whether no number of arguments is too many for the verb."""
    return any(a.nargs in ("*", "+") for a in verb._actions if not a.option_strings)


def mistakes() -> list[tuple[str, ...]]:
    """Command lines that make no sense, of every kind, for every verb."""
    found: list[tuple[str, ...]] = [(), ("nonsense",), ("--nonsense",)]
    for name, verb in verbs().items():
        complete = (name, *required(verb))
        found += [(*complete, "--nonsense")]
        found += [] if takes_many(verb) else [(*complete, "one", "too", "many")]
        found += [(name, *required(verb)[:-1])] if required(verb) else []
        for action in verb._actions:
            flag = action.option_strings[-1] if action.option_strings else ""
            if flag and action.nargs is None:
                found.append((*complete, flag))  # its value is missing
            if flag and (action.choices or action.type in (int, float)):
                found.append((*complete, flag, "nonsense"))
    return found


@pytest.mark.parametrize("argv", mistakes(), ids=" ".join)
def test_exits_with_64(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    said = capsys.readouterr()
    assert end.value.code == 64
    assert said.out == ""
    assert said.err.startswith("usage: servestate")


@pytest.mark.parametrize(
    "argv",
    [
        ("plan", "--var", "novalue"),
        ("plan", "--var", "=x"),
        ("state", "show"),
        ("state", "list", "multi-model"),
        ("state", "show", "a/b/c/d"),
        ("logs", "a b"),
        ("lock", "break"),
        ("lock", "list", "some-id"),
        ("export",),
        ("export", "solo", "--all"),
        ("import", "solo"),
    ],
    ids=" ".join,
)
def test_what_the_parser_cannot_see(site: Site, argv: tuple[str, ...]) -> None:
    site.configure(ONE)
    result = site.run(*argv)
    assert (result.code, result.out) == (64, "")
    assert result.err.startswith("servestate: error: ")


def test_the_real_program_too(site: Site) -> None:
    site.folder.mkdir()
    check(site.run("plan", "--detailed-exitcode", "--bogus"), site.folder, "usage/mistyped_flag")


def test_abbreviations_are_not_guessed(site: Site) -> None:
    # --auto would be read as --auto-approve: a prefix must not approve anything.
    site.configure(ONE)
    assert site.run("apply", "--auto").code == 64


def test_help_names_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for name in verbs():
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        assert "64   usage error" in capsys.readouterr().out
