"""The standard streams, as the verbs need them. Imports next to nothing: `--help` waits for it."""

from __future__ import annotations

import io
import os
import sys


def open_streams() -> None:
    """Make the standard streams fit to be used: one that is closed (`>&-`, some service managers) becomes
    /dev/null, and what the encoding of standard output cannot express is escaped instead of ending the verb.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # open to the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
