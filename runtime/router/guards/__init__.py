"""Guardrails: what must not be said, what is masked, and where nothing may be sent."""
