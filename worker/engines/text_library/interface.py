"""What the engine needs from a library that batches generations by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from wire.inputs import TextInputs
from wire.text import TokenLogprob
from worker.engines.text.generation import Generation
from worker.engines.text.tokenization import Tokenization


@dataclass(frozen=True, eq=False)
class LibraryRequest:
    """A text that the library generates. `generation` grows by the tokens that the library returns.

    It is added again, with another name, when its tokens have to be computed elsewhere or after a failed step.
    """

    name: str
    inputs: TextInputs
    generation: Generation

    @property
    def context(self) -> list[int]:
        """The prompt and the tokens that are generated already: what the library computes first."""
        return [*self.generation.prompt, *self.generation.tokens]

    @property
    def missing_tokens(self) -> int:
        """Maximum number of tokens that are not generated yet."""
        return max(self.generation.limit - len(self.generation.tokens), 1)


class LibraryOutput(NamedTuple):
    """What a step has generated for one request."""

    name: str
    tokens: Sequence[int]
    #: Of each token, where they were asked for.
    logprobs: Sequence[TokenLogprob] = ()
    #: Tokens of the context that were found in the prefix cache.
    cached_tokens: int = 0
    #: The library has ended the request by itself.
    is_ended: bool = False
    #: The model's numbers were meaningless: the tokens do not count.
    problem: str = ""


class LibraryUsage(NamedTuple):
    """Blocks of the key-value cache; 0 if the library does not tell."""

    blocks: int = 0
    used_blocks: int = 0


class TextLibrary(Protocol):
    """A library with one loaded model. Every method is called from the loop's thread."""

    def load(self, tokenization: Tokenization) -> None:
        """Load the model onto the device. Called once. Raises `UnsupportedModel`."""

    @property
    def context_length(self) -> int:
        """Tokens of a prompt and its result. Valid after `load`."""

    @property
    def max_requests(self) -> int:
        """Largest number of requests that share a step."""

    @property
    def dtype(self) -> str:
        """Name of the precision of the weights. Valid after `load`."""

    @property
    def has_grammars(self) -> bool:
        """True if it follows the grammar of a generation."""

    def unsupported(self, inputs: TextInputs) -> str:
        """Return the sentence for inputs that the library does not take; empty for others."""

    def add(self, request: LibraryRequest) -> None:
        """Take in a request."""

    def abort(self, names: Sequence[str]) -> None:
        """End requests that are unfinished."""

    def step(self) -> Sequence[LibraryOutput]:
        """Compute one step of its choice. It may give several tokens to a request, or none."""

    def recover(self) -> None:
        """Called after a step that raised, when all requests are aborted: drop what may be computed in part."""

    def check(self) -> None:
        """Called after the first step. Raises `UnsupportedModel` if the model computes nonsense."""

    def fingerprint(self) -> str:
        """Return a text that names the library, its version and what else its speed depends on."""

    def usage(self) -> LibraryUsage: ...

    def memory_bytes(self) -> int:
        """Return the memory in use on the device."""

    def close(self) -> None: ...
