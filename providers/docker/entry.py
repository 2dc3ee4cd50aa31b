"""How secrets enter a container: over its standard input, read by a few lines of shell that then become the
engine. Pure.

What Docker is told of a container (environment, arguments, labels) is shown by `docker inspect` and kept on
disk, so no secret may be in it. Frames are lines: `file NAME DATA`, `env NAME DATA` and, last, `end`; DATA is
a backslash, a zero and three octal digits for every byte, which `printf %b` of every POSIX shell turns back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from servestate.providers.protocol import PermanentError

FOLDER = "/run/servestate"
"""A tmpfs of the container: what is written there is on no disk and ends with it."""

SHELL = "/bin/sh"

EXIT_CODE = 78
"""How the shell ends when its standard input ends before all secrets have come (EX_CONFIG of sysexits.h)."""

# The umask holds in subshells only, so the engine starts with the image's own. A command substitution drops
# newlines at the end of a value, hence the full stop that is cut off again.
SCRIPT = f"""\
set -eu
servestate_whole=
while IFS=' ' read -r servestate_kind servestate_name servestate_data; do
  case $servestate_kind in
    file) (umask 377; printf '%b' "$servestate_data" > "{FOLDER}/$servestate_name") ;;
    env)
      servestate_data=$(printf '%b.' "$servestate_data")
      export "$servestate_name=${{servestate_data%.}}" ;;
    end) servestate_whole=yes; break ;;
  esac
done
if [ -z "$servestate_whole" ]; then
  echo "servestate: the launch was cut off before all secrets had come" >&2
  exit {EXIT_CODE}
fi
unset servestate_kind servestate_name servestate_data servestate_whole
exec "$@" < /dev/null
"""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True, slots=True)
class Handover:
    """What is handed over: files below `FOLDER` by name, and variables of the engine's environment."""

    files: tuple[tuple[str, str], ...] = ()
    env: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.files or self.env)

    def __repr__(self) -> str:
        names = [name for name, _ in (*self.files, *self.env)]
        return f"Handover({', '.join(names)})"


def entrypoint() -> list[str]:
    """The program that reads the frames; what follows it is the command that it becomes."""
    return [SHELL, "-c", SCRIPT, "servestate"]


def frames(handover: Handover) -> bytes:
    """What to write to the container's standard input. Raises PermanentError SS503 for a variable that no
    shell can set."""
    for name, _ in handover.env:
        if not _VARIABLE.match(name):
            raise PermanentError(
                "SS503",
                f'the variable "{name}" cannot take a secret: a shell cannot set it',
                "name it with letters, digits and underscores only",
            )
    lines = [f"file {name} {_octal(text)}" for name, text in handover.files]
    lines += [f"env {name} {_octal(text)}" for name, text in handover.env]
    return "\n".join([*lines, "end", ""]).encode()


def _octal(text: str) -> str:
    # The environment of this process may hold bytes that are not UTF-8; they stay what they are.
    return "".join(f"\\0{byte:03o}" for byte in text.encode(errors="surrogateescape"))
