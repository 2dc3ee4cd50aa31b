"""GPUs of processes: given by number, hidden from those that were given none, held against other sites."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from servestate.planner.launch import LOCAL, Placement
from servestate.planner.spec.site import DeclaredGpu
from servestate.providers import proc
from servestate.providers.process import ProcessProvider

VISIBLE = "CUDA_VISIBLE_DEVICES"


def environment(site, kit, spec, placement):
    """What the engine sees."""

    async def go():
        provider = site.provider()
        launched = await provider.launch(spec, replace(site.marks(), placement=placement))
        (tree,) = site.trees()
        environ = proc.environ(tree.members[0].pid, having="SERVESTATE_NONCE")
        (seen,) = await provider.observe(site.lineage)
        await provider.stop(launched.handle, 1.0)
        return environ, seen.placement

    return asyncio.run(go())


def test_an_engine_sees_the_gpus_it_was_given_and_its_marks_tell_them(site, kit):
    placement = Placement(LOCAL, ("2", "0"), 0.5)
    environ, seen = environment(site, kit, replace(kit.tiny(), gpus=2, gpu_fraction=0.5), placement)
    assert (environ[VISIBLE], environ["CUDA_DEVICE_ORDER"]) == ("2,0", "PCI_BUS_ID")
    assert seen == placement


def test_an_engine_without_gpus_sees_none_unless_its_environment_says_so(site, kit):
    assert environment(site, kit, kit.tiny(), Placement())[0][VISIBLE] == ""
    assert environment(site, kit, kit.tiny(env=((VISIBLE, "0"),)), Placement())[0][VISIBLE] == "0"


def test_what_another_site_holds_is_told_with_its_lineage(site, kit):
    async def go():
        provider = site.provider()
        spec, marks = replace(kit.tiny(), gpus=1), replace(site.marks(), placement=Placement(LOCAL, ("1",)))
        await provider.launch(spec, marks)
        gpus = tuple(DeclaredGpu(id=id, memory=1 << 30) for id in ("0", "1"))
        asking = ProcessProvider(site.root, site.folder, provider._secrets, gpus=gpus)
        (others,), (ours,) = await asking.hosts("another lineage"), await asking.hosts(site.lineage)
        return [gpu.holders for gpu in others.gpus], [gpu.holders for gpu in ours.gpus], marks

    others, ours, marks = asyncio.run(go())
    assert others == [(), (f"{marks.address} of lineage {site.lineage}",)]
    assert ours == [(), ()]
