"""Python processes whose wall clock can be stepped while they run: `time.time` is ahead of the real one by as
many seconds as the eight bytes of the file say that SERVESTATE_TEST_CLOCK names. Monotonic clocks are left as
they are, as a real step leaves them."""

import mmap
import os
import struct
import time

_OFFSET = struct.Struct("d")


def _step(path):
    with open(path, "rb") as file:
        shared = mmap.mmap(file.fileno(), _OFFSET.size, prot=mmap.PROT_READ)
    real = time.time
    time.time = lambda: real() + _OFFSET.unpack_from(shared)[0]


if "SERVESTATE_TEST_CLOCK" in os.environ:
    _step(os.environ["SERVESTATE_TEST_CLOCK"])
