"""The data path: `run` serves a routing table until it is asked to stop."""

from servestate.runtime.router.limits import Limits
from servestate.runtime.router.process.server import Router, RouterConfig
from servestate.runtime.router.process.service import run, serve

__all__ = ["Limits", "Router", "RouterConfig", "run", "serve"]
