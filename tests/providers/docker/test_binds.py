"""B4: a link in the bundle gives a container nothing that the site does not."""

from __future__ import annotations

import asyncio

import pytest

from servestate.planner.launch import Mount
from servestate.providers.docker import binds
from servestate.providers.protocol import PermanentError


@pytest.fixture
def bundle(tmp_path):
    """A bundle with a folder and servestate's own, beside a folder of the host's."""
    made = tmp_path / "bundle"
    for folder in (made / "data", made / ".servestate", tmp_path / "models" / "inner"):
        folder.mkdir(parents=True)
    return made


def source(bundle, written, *allowed):
    return binds.resolved(Mount(written, "/x"), bundle, allowed).source


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("/", "is the whole host"),
        ("/etc", "is part of the host's system"),
        ("../../models", "is neither in the bundle's folder nor in the allowed_paths"),
        ("../.servestate", "holds .servestate"),
        ("..", "holds .servestate"),
        ("link", "cannot be followed"),
    ],
)
def test_a_link_that_leads_out_is_shown_and_refused(bundle, target, said):
    link = bundle / "data" / "link"
    link.symlink_to(target)
    with pytest.raises(PermanentError, match="SS532") as refused:
        source(bundle, "data/link")
    assert str(link) in refused.value.what
    assert said in refused.value.what
    if target == "/etc":
        assert "leads to /etc" in refused.value.what


def test_a_link_in_the_midst_of_a_path_is_followed(bundle):
    (bundle / "out").symlink_to("../models")
    with pytest.raises(PermanentError, match=f"leads to {bundle.parent}/models/inner"):
        source(bundle, "out/inner")


def test_what_is_mounted_is_where_the_link_leads(bundle):
    (bundle / "inside").symlink_to("data")
    (bundle / "out").symlink_to("../models/inner")
    (bundle.parent / "allowed").symlink_to("models")
    assert source(bundle, "inside") == f"{bundle}/data"
    assert source(bundle, "out", f"{bundle.parent}/allowed") == f"{bundle.parent}/models/inner"


def test_a_bundle_that_is_reached_by_a_link_is_itself(bundle):
    (bundle.parent / "linked").symlink_to("bundle")
    assert source(bundle.parent / "linked", "data") == f"{bundle}/data"


def test_what_is_not_there_is_left_to_docker_unless_a_link_leads_to_it(bundle):
    assert source(bundle, "nowhere") == f"{bundle}/nowhere"
    (bundle / "dangling").symlink_to("/var/lib/nowhere")
    with pytest.raises(PermanentError, match="leads to /var/lib/nowhere"):
        source(bundle, "dangling")


@pytest.mark.slow
def test_no_container_is_given_the_host_by_a_link(place, tiny, tmp_path):
    (tmp_path / "hostroot").symlink_to("/")
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    through = place.spec(tiny, mounts=(Mount("hostroot", "/x"),))
    with pytest.raises(PermanentError, match=r"SS532.*hostroot leads to /, which is the whole host"):
        asyncio.run(place.provider().launch(through, place.marks()))
    assert place.all() == []
    spec = place.spec(tiny, mounts=(Mount("link", "/x"),))
    asyncio.run(place.provider().launch(spec, place.marks()))
    (mount,) = place.only().attrs["Mounts"]
    assert mount["Source"] == str(tmp_path / "data")
