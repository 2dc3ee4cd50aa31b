"""The routers for inference engines that are written in Rust and come of one family: vllm-router,
sglang-router and smg. None of them has a weighted split: two workers, in turn."""

from __future__ import annotations

from pathlib import Path

from benchmarks.router.peer import Launch, Place, executable

_ONE_THREAD = {"TOKIO_WORKER_THREADS": "1"}
_COMMON = (
    "--policy",
    "round_robin",
    "--disable-retries",
    "--disable-circuit-breaker",
    "--log-level",
    "error",
)


class VllmRouter:
    """No retries, no circuit breaker, logs of errors alone."""

    name = "vllm-router"
    about = "parses and writes the body anew"

    def program(self, installed: Path) -> Path | None:
        return executable(installed / "vllm-router" / "bin" / "vllm-router")

    def launch(self, place: Place) -> Launch:
        return Launch((str(self.program(place.installed)), *_arguments(place), *_COMMON), _ONE_THREAD)


class SglangRouter:
    """The same settings."""

    name = "sglang-router"
    about = "parses and writes the body anew"

    def program(self, installed: Path) -> Path | None:
        return executable(installed / "sglang-router" / "bin" / "sglang-router")

    def launch(self, place: Place) -> Launch:
        command = (str(self.program(place.installed)), "launch", *_arguments(place), *_COMMON)
        return Launch(command, _ONE_THREAD)


class Smg:
    """The same settings."""

    name = "smg"
    about = "parses and writes the body anew"

    def program(self, installed: Path) -> Path | None:
        return executable(installed / "smg" / "bin" / "smg")

    def launch(self, place: Place) -> Launch:
        command = (str(self.program(place.installed)), "launch", *_arguments(place), *_COMMON)
        return Launch(command, _ONE_THREAD)


def _arguments(place: Place) -> tuple[str, ...]:
    listen = ("--host", "127.0.0.1", "--port", str(place.port))
    metrics = ("--prometheus-host", "127.0.0.1", "--prometheus-port", str(place.metrics_port))
    return (*listen, *metrics, "--worker-urls", place.url(0), place.url(1))
