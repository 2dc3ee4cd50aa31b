"""One site on this machine: where its state, table and instances are, and what may touch them."""

from __future__ import annotations

import getpass
import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from servestate.planner.address import InstanceAddress
from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.planner.launch import Spec
from servestate.planner.spec.site import DockerProvider, Site
from servestate.planner.state import State
from servestate.providers import identity
from servestate.providers.protocol import Provider, TransientError
from servestate.providers.secrets import Redactor, Secrets
from servestate.providers.site_secrets import SiteSecrets
from servestate.runtime.store.protocol import Owner, StateStore, StoreError
from servestate.runtime.store.sqlite import SqliteStore

_SQLITE = "sqlite:///"
_LONGEST_SOCKET_PATH = 100
"""Bytes; the kernel's limit for a unix socket path is 108 with its terminator."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths and parts of one site. `root` is the bundle's folder, `folder` holds all that is written;
    `prefix` sets apart what belongs to a state file of another name than `state.db` in the same folder."""

    root: Path
    folder: Path
    site: Site
    store: StateStore
    prefix: str = ""

    @property
    def table_path(self) -> Path:
        """The routing table file, all that the router reads."""
        return self.folder / f"{self.prefix}table.json"

    @property
    def control_path(self) -> Path:
        """The router's control socket."""
        return self._socket("router.sock")

    @property
    def api_path(self) -> Path:
        """The socket of the management API, which the router relays to."""
        return self._socket("api.sock")

    @property
    def keyring_path(self) -> Path:
        """Who may call, as the router learns it."""
        return self.folder / f"{self.prefix}access.json"

    def _socket(self, name: str) -> Path:
        """The path of a socket. One too long for a socket is replaced by a short one, the same by whichever
        link, with whatever TMPDIR and by whom the folder is reached: an apply that looks elsewhere than the
        router would take it for not running, and stop what it still routes to."""
        path = (self.folder / f"{self.prefix}{name}").resolve()
        if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
            return path
        name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return Path("/tmp") / f"servestate-{name}.sock"  # noqa: S108  # not TMPDIR, see above

    @property
    def secrets(self) -> Secrets:
        """The backend that secret references resolve through, the keys of engines among them."""
        return SiteSecrets(self.folder / f"{self.prefix}engine.key", self.kept_secrets_path)

    @property
    def kept_secrets_path(self) -> Path:
        """The secrets that came with requests to the API."""
        return self.folder / f"{self.prefix}api-secrets.json"

    @property
    def ledger_path(self) -> Path:
        """What the API has promised and not done yet."""
        return self.folder / f"{self.prefix}api.db"

    @property
    def audit_path(self) -> Path:
        """Who changed what through the API."""
        return self.folder / f"{self.prefix}audit.jsonl"

    def providers(self, state: State) -> Mapping[str, Provider]:
        """Every provider that this site or `state` needs, by name: what is recorded can be ended also where
        the configuration knows it no more."""
        from servestate.providers.registry import build

        site = self.site
        used = {i.spec.provider for i in state.instances.values()}
        used |= {kind.provider for kind in site.workload_types.values()}
        docker = site.providers.docker or (DockerProvider() if "docker" in used else None)
        made = build(self.folder / "run", self.root, self.secrets, site.providers.process, docker)
        for provider in made.values():
            if isinstance(provider, Redactor):
                provider.consult(self._recorded)
        return made

    def _recorded(self) -> dict[InstanceAddress, Spec]:
        """The specs of all instances in the state as it is now: providers of the controller outlive many."""
        try:
            state = self.store.read()
        except StoreError as error:
            raise TransientError(str(error)) from error
        return {address: one.spec for address, one in state.instances.items()} if state else {}


SUPPORTED_PROVIDERS = frozenset({"process", "docker"})
"""The providers that a workload type may name."""


def open_workspace(root: Path, site: Site) -> Workspace:
    """The workspace of a site block. Raises InvalidInput for a state URL that is not supported."""
    if not site.state.startswith(_SQLITE):
        what = f'servestate.state is "{site.state}", which is not supported yet'
        raise InvalidInput([Diagnostic("SS405", what, "write sqlite:///PATH")])
    path = root / site.state.removeprefix(_SQLITE)
    prefix = "" if path.stem == "state" else f"{path.stem}."
    return Workspace(root, path.parent, site, SqliteStore(path, is_gone), prefix)


def owner_of_this_process(verb: str) -> Owner:
    """Who we are, for the lock and the journal."""
    me = identity.identify(os.getpid())
    return Owner(verb, _person(), socket.gethostname(), str(me), ci_url(os.environ))


def _person() -> str:
    """The user's name; its number where it has none, as in containers that run under any user id."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def is_gone(owner: Owner) -> bool:
    """Whether the process of that owner has certainly ended: it was of this host, and of an earlier boot or
    no longer there."""
    if owner.host != socket.gethostname():
        return False
    process = identity.parse(owner.process)
    return process is not None and not identity.alive(process)


def ci_url(environ: Mapping[str, str]) -> str:
    """The page of the CI job that we run in, "" outside CI or where the system does not tell."""
    if "GITHUB_RUN_ID" in environ:
        server, repository = environ.get("GITHUB_SERVER_URL", ""), environ.get("GITHUB_REPOSITORY", "")
        return f"{server}/{repository}/actions/runs/{environ['GITHUB_RUN_ID']}"
    names = ("SERVESTATE_CI_URL", "CI_JOB_URL", "BUILD_URL", "BUILDKITE_BUILD_URL", "CIRCLE_BUILD_URL")
    return next((environ[name] for name in names if environ.get(name)), "")
