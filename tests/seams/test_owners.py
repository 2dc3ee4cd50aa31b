"""Whose endpoints an apply may delete: those of the same bundle, target and state file."""

from __future__ import annotations

from tests.cli.harness import ONE, Site, bundle, remote

TARGETS = """
bundle: {name: shop}
targets:
  dev: {default: true}
  prod: {presets: {name_prefix: prod_}}
"""
ENDPOINT = {"chat": {"only": remote()}}


def test_a_target_deletes_nothing_of_another(site: Site) -> None:
    site.write(bundle(ENDPOINT) + TARGETS)
    site.apply().ok()
    assert "Plan: 2 to add, 0 to change, 0 to destroy." in site.run("plan", "--env", "prod").ok().out
    site.run("apply", "--auto-approve", "--env", "prod").ok()
    assert {r.owner for r in site.state().endpoints.values()} == {"shop@dev", "shop@prod"}
    site.run("destroy", "--auto-approve", "--env", "prod").ok()
    assert set(site.state().endpoints) == {"chat"}


def test_two_states_in_one_folder_have_two_tables(site: Site) -> None:
    text = bundle(ENDPOINT)
    site.write(text)
    site.apply().ok()
    other = text.replace("servestate:\n", "servestate:\n  state: sqlite:///.servestate/other.db\n")
    assert other != text
    site.write(other)
    site.apply().ok()
    site.write(text)
    assert "No changes." in site.run("plan").ok().out
    folder = site.folder / ".servestate"
    assert {path.name for path in folder.glob("*table.json")} == {"table.json", "other.table.json"}


def test_destroy_works_without_the_configuration(site: Site) -> None:
    site.configure(ONE)
    site.apply().ok()
    (site.folder / "endpoints.yaml").unlink()
    assert "Destroy complete! Resources: 2 destroyed." in site.run("destroy", "--auto-approve").ok().out
    assert site.alive() == []


def test_destroy_without_configuration_does_not_choose_between_bundles(site: Site) -> None:
    site.write(bundle(ENDPOINT) + TARGETS)
    site.apply().ok()
    site.run("apply", "--auto-approve", "--env", "prod").ok()
    (site.folder / "endpoints.yaml").unlink()
    refused = site.run("destroy", "--auto-approve")
    assert refused.code == 1
    assert "SS305" in refused.err
    assert "shop@dev, shop@prod" in refused.err
