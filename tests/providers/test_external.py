"""The provider `external` checks what can be checked without calling anybody."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from servestate.planner.launch import ExternalSpec, LaunchSpec
from servestate.planner.spec.site import ProcessProvider
from servestate.providers import registry
from servestate.providers.external import ExternalProvider
from servestate.providers.protocol import Failed, Launched, PermanentError
from servestate.providers.secrets import EnvSecrets

SPEC = ExternalSpec("openai", "https://api.example.com:8443/v1/x", "gpt", "t", secret="{{secrets/s/key}}")
SECRETS = EnvSecrets({"SERVESTATE_SECRET_S__KEY": "sk-123"})


def launch(spec, site, secrets=SECRETS):
    return asyncio.run(ExternalProvider(secrets).launch(spec, site.marks()))


def test_the_handle_names_the_host_and_the_url_is_the_specs(site):
    assert launch(SPEC, site) == Launched("external:api.example.com:8443", SPEC.url)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://h/x", 'its scheme is "ftp"'),
        ("/v1/chat", 'its scheme is ""'),
        ("https:///v1", "it names no host"),
        ("https://h:port/v1", "Port could not be cast"),
        ("https://me:pass@h/v1", "it holds a user name or password"),
        ("https://[::1/v1", "Invalid IPv6 URL"),
    ],
)
def test_a_url_that_cannot_be_called_is_refused(site, url, why):
    with pytest.raises(PermanentError, match="SS509") as caught:
        launch(replace(SPEC, url=url), site)
    assert why in caught.value.what
    assert "pass@" not in str(caught.value)


def test_a_missing_key_is_named(site):
    with pytest.raises(PermanentError, match="SS501") as caught:
        launch(SPEC, site, EnvSecrets({}))
    assert "SERVESTATE_SECRET_S__KEY" in caught.value.fix
    with pytest.raises(PermanentError, match="SS501"):
        launch(replace(SPEC, secret="", headers=(("org", "{{secrets/s/org}}"),)), site)


def test_specs_of_the_other_kind_are_refused(site):
    local = LaunchSpec("process", "command", "m")
    with pytest.raises(PermanentError, match="SS503"):
        launch(local, site)
    with pytest.raises(PermanentError, match="SS503"):
        asyncio.run(site.provider().launch(SPEC, site.marks()))
    for provider in (ExternalProvider(SECRETS), site.provider()):
        assert isinstance(asyncio.run(provider.probe("external:h", local)), Failed)


def test_the_registry_has_the_providers_of_the_real_world(tmp_path):
    built = registry.build(tmp_path / "run", Path("bundle"), SECRETS, ProcessProvider(), None)
    assert {name: provider.name for name, provider in built.items()} == {
        "process": "process",
        "external": "external",
    }
    assert list(tmp_path.iterdir()) == []
