"""`servestate validate`."""

from __future__ import annotations

import re

from tests.cli.harness import ONE, SPLIT, Site, bundle
from tests.cli.snapshots import check


def test_says_what_is_there(site: Site) -> None:
    site.configure(SPLIT)
    check(site.run("validate"), site.folder, "validate/valid")


def test_reports_everything_wrong_in_one_run(site: Site) -> None:
    wrong = bundle(SPLIT).replace("traffic_percentage: 90", "traffic_percentage: 100")
    site.write(wrong.replace("entity_version: '1'", "entity_version: '9'", 1))
    check(site.run("validate"), site.folder, "validate/invalid")


def test_warnings_count_only_when_strict(site: Site) -> None:
    site.write(
        bundle(ONE).replace("entity_version: '1'", "entity_version: '1'\n        scale_to_zero_enabled: true")
    )
    check(site.run("validate"), site.folder, "validate/warning")
    check(site.run("validate", "--strict"), site.folder, "validate/warning_strict")


def test_without_yaml(site: Site) -> None:
    site.folder.mkdir()
    check(site.run("validate"), site.folder, "validate/no_yaml")


def test_a_file_that_is_not_there(site: Site) -> None:
    site.folder.mkdir()
    check(site.run("validate", "-f", "nothing.yaml"), site.folder, "validate/no_such_file")


def test_yaml_that_cannot_be_parsed(site: Site) -> None:
    site.write("resources: [\n")
    result = site.run("validate")
    assert (result.code, result.out) == (1, "")
    assert re.match(r"endpoints.yaml:\d+:\d+: SS150 ", result.err)


def test_variables_and_targets(site: Site) -> None:
    text = bundle(ONE).replace("solo", "${var.name}")
    targets = "targets: {dev: {default: true}, prod: {variables: {name: prod-solo}}}"
    site.write(f"{text}\nvariables: {{name: {{}}}}\n{targets}\n")
    check(site.run("validate"), site.folder, "validate/variable_without_value")
    site.run("validate", "--var", "name=solo").ok()
    site.run("validate", "-t", "prod").ok()
    check(site.run("validate", "-t", "staging"), site.folder, "validate/no_such_target")
