"""Bad input as data: the files in bad/ hold cases, each with the findings that it must give, word for word.

    ### title
    #? target=prod var.name=value env.BUNDLE_VAR_name=value     (optional: arguments of load)
    …YAML…
    %%% second.yaml                                              (optional: a further file)
    …YAML…
    #! the findings, as people read them

After a change of wording: `python tests/spec/cases.py` writes the findings anew; read the difference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servestate.planner.diagnostics import InvalidInput
from servestate.planner.spec.bundle import Desired, Document, load

FOLDER = Path(__file__).parent / "bad"
TITLE, ARGUMENTS, FILE, FOUND = "### ", "#? ", "%%% ", "#! "


@dataclass
class Case:
    """One case. `files` maps a file's name to its text."""

    title: str
    arguments: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=lambda: {"bad.yaml": ""})
    found: list[str] = field(default_factory=list)

    def run(self) -> Desired:
        """Load the files. Raises what load raises."""
        documents = [Document(name, text) for name, text in self.files.items()]
        return load(
            documents,
            target=self.arguments.get("target"),
            variables=self._arguments("var."),
            environ=self._arguments("env."),
        )

    def _arguments(self, prefix: str) -> dict[str, str]:
        return {k.removeprefix(prefix): v for k, v in self.arguments.items() if k.startswith(prefix)}

    def outcome(self) -> list[str]:
        """The findings, a line each; empty if there are none."""
        try:
            self.run()
        except InvalidInput as error:
            return str(error).splitlines()
        return []


def read_cases(path: Path) -> list[Case]:
    """The cases of one file."""
    cases: list[Case] = []
    for line in path.read_text().split("\n"):
        if line.startswith(TITLE):
            cases.append(Case(line.removeprefix(TITLE)))
        elif line.startswith(ARGUMENTS):
            cases[-1].arguments = dict(pair.split("=", 1) for pair in line.removeprefix(ARGUMENTS).split())
        elif line.startswith(FILE):
            cases[-1].files[line.removeprefix(FILE)] = ""
        elif line.startswith(FOUND):
            cases[-1].found.append(line.removeprefix(FOUND))
        elif cases:
            name = list(cases[-1].files)[-1]
            cases[-1].files[name] += line + "\n"
    for case in cases:
        case.files = {name: text.rstrip("\n") + "\n" for name, text in case.files.items()}
    return cases


def every_case() -> list[Any]:
    """All cases as (file, case), for parametrisation."""
    return [(path.stem, case) for path in sorted(FOLDER.glob("*.txt")) for case in read_cases(path)]


def written(case: Case) -> str:
    """The case as text, with its present outcome."""
    parts = [TITLE + case.title + "\n"]
    if case.arguments:
        parts.append(ARGUMENTS + " ".join(f"{k}={v}" for k, v in case.arguments.items()) + "\n")
    for index, (name, text) in enumerate(case.files.items()):
        parts.append((FILE + name + "\n" if index else "") + text)
    return "".join(parts) + "".join(f"{FOUND}{line}\n" for line in case.outcome())


if __name__ == "__main__":
    for case_file in FOLDER.glob("*.txt"):
        case_file.write_text("\n".join(written(case) for case in read_cases(case_file)))
