"""The provider `docker`: engines in containers, on one Docker Engine or several."""

from __future__ import annotations

from servestate.providers.docker.provider import DockerProvider

__all__ = ["DockerProvider"]
