"""Files of lines: whole lines only, none lost, whatever the disk and other processes do."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servestate.runtime.router.records.rotation import RotatingFile, Rotation, of_worker
from servestate.runtime.router.records.unwritable import obstacle
from servestate.runtime.router.records.writer import Lines, Writer


def lines_of(path: Path) -> list[bytes]:
    """All lines, of the oldest file first."""
    older = sorted(path.parent.glob(f"{path.name}.*"), key=lambda p: -int(p.name.rpartition(".")[2]))
    whole = b"".join(file.read_bytes() for file in (*older, path) if file.exists())
    assert whole.endswith(b"\n") or not whole
    return [line + b"\n" for line in whole.split(b"\n")[:-1]]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    quiet = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, quiet)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"-") + b"\n"), max_size=9), max_size=9
    ),
    st.integers(1, 120),
)
def test_rotation_loses_and_splits_no_line(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[bytes]], most: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "access.log"
    file = RotatingFile(path, Rotation(most, keep=1000))
    for now, batch in enumerate(batches):
        waiting = deque(batch)
        file.append(waiting, now)
        assert not waiting
        if now % 3 == 2:
            file.close()
    file.close()
    written = [line for batch in batches for line in batch]
    assert lines_of(path) == written
    for found in path.parent.iterdir():
        content = found.read_bytes()
        assert len(content) <= most or content.count(b"\n") == 1, "only a line that fits no file is longer"


def test_the_oldest_go(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    file = RotatingFile(path, Rotation(10, keep=2))
    for number in range(9):
        file.append(deque([b"line %d\n" % number]), 0.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["access.log", "access.log.1", "access.log.2"]
    assert lines_of(path) == [b"line 6\n", b"line 7\n", b"line 8\n"]


def test_none_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    file = RotatingFile(path, Rotation(10, keep=0))
    for number in range(5):
        file.append(deque([b"line %d\n" % number]), 0.0)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"line 4\n"]


def test_rotation_by_age(tmp_path: Path) -> None:
    path = tmp_path / "payload.jsonl"
    file = RotatingFile(path, Rotation(1 << 20, keep=9, max_age_s=60))
    for now in (0.0, 59.0, 61.0, 62.0, 130.0):
        file.append(deque([b"%d\n" % now]), now)
    assert path.with_name("payload.jsonl.2").read_bytes() == b"0\n59\n"
    assert path.with_name("payload.jsonl.1").read_bytes() == b"61\n62\n"
    assert path.read_bytes() == b"130\n"


def test_what_the_disk_has_no_room_for_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    file = RotatingFile(path, Rotation(1 << 20, keep=2))
    file.append(deque([b"a" * 99 + b"\n"]), 0.0)
    waiting = deque([b"b" * 99 + b"\n", b"c" * 99 + b"\n"])
    with largest_file(250), pytest.raises(OSError, match="File too large"):
        file.append(waiting, 0.0)
    assert path.read_bytes() == b"a" * 99 + b"\n", "not even the part that would have fitted"
    assert len(waiting) == 2
    file.append(waiting, 0.0)
    assert [line[:1] for line in lines_of(path)] == [b"a", b"b", b"c"]


def test_a_line_that_a_killed_process_left_torn_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(b"whole\n" + b"torn" * 100_000)
    file = RotatingFile(path, Rotation(1 << 30, keep=2))
    file.append(deque([b"next\n"]), 0.0)
    assert path.read_bytes() == b"whole\nnext\n"
    path.write_bytes(b"nothing but torn")
    file.append(deque([b"next\n"]), 0.0)
    file.close()
    RotatingFile(path, Rotation(1 << 30, keep=2)).append(deque([b"last\n"]), 0.0)
    assert path.read_bytes().endswith(b"next\nlast\n")


def test_a_file_that_was_moved_or_deleted_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "access.log"
    file = RotatingFile(path, Rotation(1 << 20, keep=2))
    file.append(deque([b"1\n"]), 0.0)
    path.rename(path.with_name("moved"))
    file.append(deque([b"2\n"]), 0.0)
    path.unlink()
    path.with_name("moved").unlink()
    path.parent.rmdir()
    file.append(deque([b"3\n"]), 0.0)
    assert path.read_bytes() == b"3\n"


def test_two_processes_that_overlap_mix_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    rotation = Rotation(2000, keep=1000)
    one, other = RotatingFile(path, rotation), RotatingFile(path, rotation)
    for number in range(200):
        one.append(deque([b"one %d\n" % number] * 3), 0.0)
        other.append(deque([b"other %d\n" % number] * 3), 0.0)
    found = lines_of(path)
    assert len(found) == 1200
    for name in (b"one", b"other"):
        mine = [line for line in found if line.startswith(name + b" ")]
        assert mine == [b"%b %d\n" % (name, number) for number in range(200) for _ in range(3)]


def test_each_worker_has_a_file_of_its_own(tmp_path: Path) -> None:
    assert of_worker(tmp_path / "access.log", 0) == tmp_path / "access.log"
    assert of_worker(tmp_path / "access.log", 2) == tmp_path / "access-w2.log"
    assert of_worker(Path("/dev/stdout"), 2) == Path("/dev/stdout")


# The writer.


def wait_for(what: str, found: object) -> None:
    until = time.monotonic() + 10
    while not found():  # type: ignore[operator]
        assert time.monotonic() < until, what
        time.sleep(0.01)


def writer_to(path: Path, most_bytes: int = 1 << 20) -> Writer[bytes]:
    return Writer("test", Lines(RotatingFile(path, Rotation(1 << 20, keep=2))), most_bytes)


def test_lines_are_written_within_a_quarter_of_a_second(tmp_path: Path) -> None:
    writer = writer_to(tmp_path / "a.log")
    late = []
    for number in range(5):
        writer.put(b"%d\n" % number, 2)
        began = time.monotonic()
        wait_for("the line", lambda n=number: lines_of(tmp_path / "a.log")[-1:] == [b"%d\n" % n])
        late.append(time.monotonic() - began)
    writer.close(1.0)
    assert sorted(late)[2] < 0.25, late


def test_a_full_disk_is_reported_and_recovered_from(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.symlink_to("/dev/full")
    writer = writer_to(path, most_bytes=60)
    for number in range(10):
        writer.put(b"line %03d\n" % number, 9)
    wait_for("the error", lambda: "No space left" in writer.error)
    assert writer.dropped == 4, "what there was no room for in memory"
    path.unlink()
    wait_for("the lines", lambda: len(lines_of(path)) == 6)
    writer.put(b"line 010\n", 9)
    writer.close(1.0)
    assert (writer.error, writer.dropped) == ("", 4)
    assert lines_of(path) == [b"line %03d\n" % n for n in (*range(6), 10)]


def test_a_folder_that_cannot_be_made_is_reported_and_recovered_from(tmp_path: Path) -> None:
    in_the_way = tmp_path / "logs"
    in_the_way.write_text("not a folder")
    writer = writer_to(in_the_way / "a.log")
    writer.put(b"1\n", 2)
    wait_for("the error", lambda: writer.error)
    assert writer.error == (
        f"{in_the_way / 'a.log'}: Not a directory; "
        "one of its folders is a file: move that away, or name another path"
    )
    in_the_way.unlink()
    wait_for("the line", lambda: lines_of(in_the_way / "a.log") == [b"1\n"])
    wait_for("no error", lambda: not writer.error)
    writer.close(1.0)


def test_lines_that_could_never_be_written_are_dropped_at_the_end_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.mkdir()
    writer = writer_to(path)
    for number in range(3):
        writer.put(b"%d\n" % number, 2)
    wait_for("the error", lambda: writer.error)
    assert writer.error == f"{path}: Is a directory; it is a folder: name a file in it, or move it away"
    assert writer.dropped == 0
    writer.close(1.0)
    assert writer.dropped == 3


def test_what_stands_in_the_way_is_seen_without_touching_anything(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))

    def met(path: Path) -> int | None:
        found = obstacle(path)
        return found.errno if found is not None else None

    assert met(tmp_path / "folder") == errno.EISDIR
    assert met(tmp_path / "file" / "a.log") == met(tmp_path / "file" / "deep" / "a.log") == errno.ENOTDIR
    assert met(tmp_path / "file") is met(tmp_path / "folder" / "deep" / "a.log") is None
    assert met(Path("/dev/null")) is None
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_hangs_costs_records_and_no_time(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = writer_to(path, most_bytes=300_000)
    line = b"x" * 999 + b"\n"
    began = time.monotonic()
    slowest = 0.0
    for _ in range(1000):
        before = time.perf_counter()
        writer.put(line, len(line))
        slowest = max(slowest, time.perf_counter() - before)
    assert time.monotonic() - began < 1.0
    assert writer.dropped == 700
    began = time.monotonic()
    writer.close(0.3)
    assert 0.25 < time.monotonic() - began < 1.0
    assert "could not be written within" in writer.error
    read = 0
    until = time.monotonic() + 5
    while read < 300_000 and time.monotonic() < until:  # the pipe moves again: the thread can end
        try:
            read += len(os.read(reader, 1 << 20))
        except BlockingIOError:
            time.sleep(0.01)
    os.close(reader)
    assert read == 300_000


def test_what_is_left_is_written_at_the_end(tmp_path: Path) -> None:
    writer = writer_to(tmp_path / "a.log")
    for number in range(1000):
        writer.put(b"%d\n" % number, 2)
    writer.close(1.0)
    assert len(lines_of(tmp_path / "a.log")) == 1000


class _Picky:
    """A destination that cannot write one thing."""

    path = Path("numbers")

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, items: deque[bytes], *, last: bool) -> None:
        while items:
            if items[0] == b"3":
                raise ValueError("three")
            self.written.append(items.popleft())

    def close(self) -> None:
        self.written.append(b"closed")


def test_what_cannot_be_written_at_all_holds_nothing_up() -> None:
    picky = _Picky()
    writer = Writer("test", picky, 100)
    for number in range(6):
        writer.put(b"%d" % number, 1)
    wait_for("the rest", lambda: b"".join(picky.written) == b"01245")
    writer.close(1.0)
    assert picky.written[-1] == b"closed"
    assert writer.dropped == 1


def test_none_is_lost_and_none_comes_twice_while_the_thread_takes_over(tmp_path: Path) -> None:
    """The thread takes lines away in the very moments in which others are put."""
    path = tmp_path / "access.log"
    writer = Writer("test", Lines(RotatingFile(path, Rotation(1 << 30, keep=2))), 1 << 30)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        ends = time.monotonic() + 1.5
        put = 0
        while time.monotonic() < ends:
            for _ in range(100):
                line = b"%d\n" % put
                writer.put(line, len(line))
                put += 1
    finally:
        sys.setswitchinterval(before)
    writer.close(10.0)
    assert writer.dropped == 0
    assert path.read_bytes() == b"".join(b"%d\n" % number for number in range(put))
    assert put > 10_000


def test_all_that_was_put_is_written_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    writer = Writer("test", Lines(RotatingFile(path, Rotation(1 << 30, keep=2))), 1 << 30)
    for _ in range(10_000):
        writer.put(b"line\n", 5)
    writer.close(5.0)
    assert (len(path.read_bytes()), writer.dropped) == (50_000, 0)


STORM = """
import sys, time
from collections import deque
from pathlib import Path
from servestate.runtime.router.records.rotation import RotatingFile, Rotation
file = RotatingFile(Path(sys.argv[1]), Rotation(100_000, keep=100_000))
number = 0
while True:
    file.append(deque(b"%d %b\\n" % (number + i, b"x" * 500) for i in range(50)), 0.0)
    number += 50
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_whole_lines_and_all_that_were_written(tmp_path: Path) -> None:
    for round_ in range(10):
        path = tmp_path / str(round_) / "a.log"
        child = subprocess.Popen([sys.executable, "-c", STORM, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(0.01 + round_ * 0.037)
        child.kill()
        written = first + child.communicate()[0]
        RotatingFile(path, Rotation(1 << 30, keep=100_000)).append(deque([b"end\n"]), 0.0)
        found = lines_of(path)
        assert found.pop() == b"end\n"
        numbers = [int(line.split()[0]) for line in found]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= int(written.split()[-1])
        assert all(line.endswith(b"x" * 500 + b"\n") for line in found)
