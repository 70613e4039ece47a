"""Console output of the controller: a few lines, with a spinner while workers load."""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from configs.environment import CLIENT_KEY
from configs.logs import EscapingFormatter

if TYPE_CHECKING:  # a server without a terminal needs none of it
    from rich.console import Console
    from rich.status import Status
    from rich.text import Text

_EXAMPLE = "a handwritten seven"
_QUESTION = "What is 3 plus 4?"
#: Stands for an input in the command that calls an engine.
_INPUT = "an input"
TaskKind = Literal["image", "call", "text"]


def log_to_console(console: Console) -> None:
    """Send log lines through the console, so that they do not overwrite the spinner."""
    from rich.highlighter import NullHighlighter
    from rich.logging import RichHandler

    handler = RichHandler(console=console, show_path=False, highlighter=NullHighlighter(), log_time_format="[%X]")
    handler.setFormatter(EscapingFormatter("%(message)s", multiline=True))
    logging.getLogger().handlers[:] = [handler]


class ServerConsole:
    """Prints lines and, on a terminal, a spinner. Errors of a file that cannot be written are ignored."""

    def __init__(self, console: Console | None) -> None:
        """`console` is that of a terminal; None prints lines to the standard output."""
        self._console = console
        self._status: Status | None = None

    def line(self, text: str) -> None:
        with contextlib.suppress(OSError):
            if self._console is None:
                print(text, flush=True)
            else:
                self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def busy(self, what: str | None) -> None:
        """Show a spinner with this text; None removes it."""
        status = self._status
        if not what and status is not None:
            self._status = None
            status.stop()
        elif what and status is not None:
            status.update(_plain(what))
        elif what and self._console is not None and self._console.is_terminal:
            self._status = self._console.status(_plain(what))
            self._status.start()

    def devices(self, slots: Sequence[str], names: Sequence[str]) -> None:
        """Print the devices: GPUs by name, CPU slots and simulated devices by number."""
        cpus = sum(slot.startswith("cpu") for slot in slots)
        simulated = sum(slot.startswith("sim") for slot in slots)
        found = [*names, *([f"{cpus} CPU slots (no GPU)"] if cpus else [])]
        found += [f"{simulated} simulated accelerators"] if simulated else []
        self.line(f"devices: {', '.join(found)}")

    def ready(self, url: str, model: str, *, certificate: Path | None, keyed: bool, task: TaskKind = "image") -> None:
        """Print the addresses and an example request."""
        self.busy(None)
        self.line(f"\nMuster is ready at {url}   (API: {url}/docs, metrics: {url}/metrics, Ctrl-C stops)\n")
        if task == "call":
            self.line(f'  Put an input of {model} in place of "{_INPUT}"; its type is in {url}/docs:')
        self.line(f"  {curl_example(url, model, certificate=certificate, keyed=keyed, task=task)}\n")


def _plain(text: str) -> Text:
    """Return the text of a spinner, without markup."""
    from rich.text import Text

    return Text(text)


def curl_example(url: str, model: str, *, certificate: Path | None, keyed: bool, task: TaskKind = "image") -> str:
    """Return a shell command that requests an image or a text, or calls an engine.

    `keyed`: the server requires an API key.
    """
    path, body = _example(model, task)
    words = ["curl", "-s", *(["--cacert", str(certificate.resolve())] if certificate else [])]
    words += [f"{url}{path}", "-H", "content-type: application/json"]
    line = shlex.join(words)
    if keyed:
        line += f' -H "authorization: Bearer ${CLIENT_KEY}"'
    return f"{line} -d {shlex.quote(json.dumps(body))}"


def _example(model: str, task: TaskKind) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of a first request."""
    if task == "image":
        return "/v1/images/generations", {"model": model, "prompt": _EXAMPLE}
    if task == "text":
        messages = [{"role": "user", "content": _QUESTION}]
        return "/v1/chat/completions", {"model": model, "messages": messages}
    return f"/v1/models/{model}:predict", {"instances": [_INPUT]}
