"""What is different in the Python of a router under test: that it can bear libfaketime, and for negative
controls, that its limits do not hold. SERVESTATE_TEST_LIMITS says why:

`apart`: each worker has a copy of its own of the memory in which all of them count.
`wall`: the limits go by the wall clock, which can be stepped.
"""

import mmap
import os
import select
import sys
import time


def _apart():
    shared = mmap.mmap

    def copied(fd, length, **given):
        counts = fd >= 0 and "servestate-router" in os.readlink(f"/proc/self/fd/{fd}")
        return shared(fd, length, **({"flags": mmap.MAP_PRIVATE} if counts else given))

    mmap.mmap = copied


if "FAKETIME_TIMESTAMP_FILE" in os.environ:
    # libfaketime 0.9.10 counts the step into clock_nanosleep until a monotonic time: always EINVAL.
    time.sleep = lambda seconds: select.select([], [], [], seconds)

match os.environ.get("SERVESTATE_TEST_LIMITS"):
    case "apart" if "servestate.runtime.router.process.worker" in sys.orig_argv:
        _apart()
    case "wall":
        time.monotonic = time.time
