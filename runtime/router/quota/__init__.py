"""Limits of calls, tokens and memory, exact over all workers."""
