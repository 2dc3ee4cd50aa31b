"""A lock between processes that does not die with its holder."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time

PATIENCE_S = 0.04
"""How long a loop may stand still for another worker, which needs the lock for microseconds."""
MUTEX_BYTES = 64
"""Room for one; a pthread_mutex_t has 40 to 48 bytes, by platform."""
_SPINS = 100
_NAP_S = 0.00005

# PyDLL keeps the interpreter's lock: a thread that were let in here would hold up all workers for its turn.
_LIBC = ctypes.PyDLL(None)
_trylock = _LIBC.pthread_mutex_trylock
_unlock = _LIBC.pthread_mutex_unlock


class Uncountable(Exception):
    """The shared numbers cannot be had: a worker that was changing them does not go on."""


class Mutex:
    """A robust mutex, pthread_mutexattr_setrobust(3), at byte `at` of memory that processes share: the kernel
    takes it from a holder that dies. One that was stopped keeps it."""

    __slots__ = ("_place", "_pointer", "_stuck")

    def __init__(self, memory: mmap.mmap, at: int) -> None:
        self._place = (ctypes.c_char * MUTEX_BYTES).from_buffer(memory, at)
        self._pointer = ctypes.c_void_p(ctypes.addressof(self._place))
        self._stuck = False

    def make(self) -> None:
        """Make the lock. Once, before anybody else sees the memory."""
        attributes = ctypes.create_string_buffer(MUTEX_BYTES)
        shared, robust = 1, 1  # PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_ROBUST
        for code in (
            _LIBC.pthread_mutexattr_init(attributes),
            _LIBC.pthread_mutexattr_setpshared(attributes, shared),
            _LIBC.pthread_mutexattr_setrobust(attributes, robust),
            _LIBC.pthread_mutex_init(self._pointer, attributes),
            _LIBC.pthread_mutexattr_destroy(attributes),
        ):
            if code:
                raise OSError(code, f"no lock between processes: {os.strerror(code)}")

    def take(self) -> None:
        """Raises Uncountable where its holder does not give it back."""
        code = _trylock(self._pointer)
        if code or self._stuck:
            self._wait(code)

    def give(self) -> None:
        """Let the next one in."""
        _unlock(self._pointer)

    def _wait(self, code: int) -> None:
        # Who has waited in vain once tries only briefly, or each request of a second would stop the loop.
        until = 0.0 if self._stuck else time.monotonic() + PATIENCE_S
        spins = 0
        while code == errno.EBUSY:
            spins += 1
            if spins > _SPINS:
                if time.monotonic() >= until:
                    self._stuck = True
                    raise Uncountable("a worker of the router holds what all of them count with")
                time.sleep(_NAP_S)
            code = _trylock(self._pointer)
        if code == errno.EOWNERDEAD:
            code = _LIBC.pthread_mutex_consistent(self._pointer)
        if code:
            raise Uncountable(f"the lock of the shared numbers is lost: {os.strerror(code)}")
        self._stuck = False
