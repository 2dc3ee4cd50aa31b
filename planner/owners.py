"""Whose endpoints are: a bundle's, by its name, or the API's."""

from __future__ import annotations

API_OWNER = "api"
"""Owns the endpoints that were made through the serving REST API; no bundle may be called so."""


API_VERB = "api"
"""What the API's writes are made through, see `Stamp.through`."""

REPAIR_VERB = "repair"
"""What the controller's writes are made through."""
