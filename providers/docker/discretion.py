"""What may be told of what containers wrote: only text in which every secret that they were given is masked.

An engine may print its secrets, and whoever looks at it later (`status`, `plan`, `logs`) did not launch it.
Which secrets it was given stands in its spec: that of the launch or probe here, else the recorded one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from servestate.planner.address import InstanceAddress
from servestate.planner.engine_keys import key_reference
from servestate.planner.launch import LaunchSpec, Spec
from servestate.providers.cause import Cause
from servestate.providers.docker.facts import Found
from servestate.providers.protocol import PermanentError
from servestate.providers.secrets import Mask, Recorded, Secrets, references


@dataclass(frozen=True, slots=True)
class Shown:
    """The lines of a log with its secrets masked; or none of them, and why."""

    lines: tuple[str, ...] = ()
    withheld: str = ""


class Discretion:
    """Knows the specs of containers by address. An address holds the hash of its spec, so that what was
    learned of one never changes."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._specs: dict[InstanceAddress, Spec] = {}
        self._mask = Mask()
        self._recorded: Recorded = dict

    def consult(self, recorded: Recorded) -> None:
        """See `Redactor.consult`."""
        self._recorded = recorded

    def learn(self, address: InstanceAddress, spec: Spec) -> None:
        """The container at that address was launched from this spec."""
        self._specs[address] = spec

    def show(self, address: InstanceAddress, log: Sequence[str]) -> Shown:
        """What may be told of the log of the container at that address."""
        if not log:
            return Shown()
        spec = self._spec(address)
        if spec is None:
            return Shown(withheld="its log is not shown: no record tells which secrets may be in it")
        try:
            self._mask.add(self._given(address, spec))
        except PermanentError as error:
            return Shown(withheld=f"its log is not shown: {error.what} here, so it cannot be masked")
        return Shown(tuple(self._mask.hide(line) for line in log))

    def why(self, found: Found, log: Sequence[str], lines: int) -> Cause:
        """How it ended, with the likely cause and as much of its log as may be told."""
        shown = self.show(found.worn.marks.address, log)
        if not shown.withheld:
            return found.why(shown.lines, lines)
        # The words of a cause may quote the log; its code does not.
        return Cause(found.why(log, 0).code, f"{found.why((), 0).text}\n{shown.withheld}")

    def _spec(self, address: InstanceAddress) -> Spec | None:
        if address not in self._specs:
            self._specs.update(self._recorded())
        return self._specs.get(address)

    def _given(self, address: InstanceAddress, spec: Spec) -> list[str]:
        """The values of all its secrets, the key of its engine among them. Raises PermanentError where one
        cannot be had, as it may have been removed since the launch."""
        env = [value for _, value in spec.env] if isinstance(spec, LaunchSpec) else []
        named = [one for text in (*env, key_reference(address, spec)) for one in references(text)]
        return [self._secrets.get(*one).reveal() for one in named]
