"""A launch, a look, an end that is heard of and a stop on a host behind ssh; prints "done"."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from servestate.providers.protocol import Ready
from tests.docker import images
from tests.providers.docker.place import DockerSite, opened, settled


async def go(place: DockerSite) -> None:
    provider = place.provider()
    spec = place.spec(images.tiny(place.client), env={"KEY": "{{secrets/a/b}}"})
    launched = await provider.launch(spec, place.marks())
    assert await settled(provider, launched.handle, spec) == Ready()
    assert [one.handle for one in await provider.observe(place.lineage)] == [launched.handle]
    await provider.await_change(place.lineage)
    hearing = asyncio.ensure_future(provider.await_change(place.lineage))
    await asyncio.sleep(0.3)
    assert not hearing.done()
    hearing.cancel()
    hearing = asyncio.ensure_future(provider.await_change(place.lineage))
    place.only().kill()
    await asyncio.wait_for(hearing, 1)
    await provider.stop(launched.handle, 1)
    assert place.all() == []


if __name__ == "__main__":
    with opened(Path(sys.argv[1])) as site:
        site.url, site.secrets = "ssh://me@somewhere:22", {"SERVESTATE_SECRET_A__B": "x"}
        asyncio.run(go(site))
    print("done")
