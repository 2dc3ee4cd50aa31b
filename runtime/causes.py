"""What an error that ends a verb, an apply or a request says, as findings."""

from __future__ import annotations

from servestate.planner.diagnostics import Diagnostic, InvalidInput
from servestate.providers.protocol import PermanentError, TransientError
from servestate.runtime.store.protocol import LostLock, StoreError

LOST_LOCK = "lost lock: somebody else writes this state now"

EXPECTED = (InvalidInput, StoreError, PermanentError, TransientError)
"""The errors that are a person's or the world's, and no mistake of ours."""


def diagnostics_of(error: Exception) -> tuple[Diagnostic, ...]:
    """The findings that an error carries."""
    match error:
        case InvalidInput():
            return error.diagnostics
        case StoreError():
            return (error.diagnostic,)
        case PermanentError():
            return (Diagnostic(error.code, error.what, error.fix),)
        case LostLock():
            return (Diagnostic("SS409", LOST_LOCK, "see who has it: servestate lock list"),)
        case _:
            return (Diagnostic("SS500", str(error), "try again"),)
