"""Exit codes of every verb. A mistyped flag is never 2, which pipelines read as "there are changes"."""

from __future__ import annotations

OK = 0
ERROR = 1
CHANGES = 2  # plan under --detailed-exitcode
REFUSED = 3  # stale, declined or blocked; nothing was changed
PARTIAL = 4  # something was done, something was not; apply again to go on
LOCKED = 6
USAGE = 64
INTERRUPTED = 130
TERMINATED = 143

TABLE = """exit codes:
  0    done, or nothing to do
  1    error before any change
  2    plan --detailed-exitcode: there are changes
  3    refused, nothing changed: stale plan, approval declined, blocked step
  4    partly done; run it again to go on
  6    somebody else holds the lock
  64   usage error
  130  interrupted (SIGINT), 143 terminated (SIGTERM)"""
