"""The methods that Muster calls. To inherit from these classes is optional: only the names count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class Engine:
    """A model that answers each call at once: `predict` takes a batch and returns one result per item.

    The annotations of `predict` are the schema: pydantic models, dataclasses, TypedDicts, msgspec structs, plain types,
    `bytes`, `PIL.Image.Image` or `numpy.ndarray`. `predict` may also take one item (`predict(self, item: str) -> str`),
    be a generator (each yielded list holds one chunk per item, None for no chunk) or `async`.

    Optional methods are documented here and not defined, because an engine without them costs nothing:

    - `key(item)`: items with equal keys share a batch, such as images of one size.
    - `warm_up()`: called before the first request.
    - `example()`: an input, or `examples`: a list of them. Muster measures the best batch with it.
    - `close()`: called when the worker ends.
    """

    #: Largest batch. `max_batch_size` in the configuration comes first.
    max_batch_size: ClassVar[int | None] = None
    #: Milliseconds that an incomplete batch waits for more items. `batching.batch_wait_ms` comes first.
    batch_wait_ms: ClassVar[float] = 0.0
    #: Media type of results that are text or bytes.
    media_type: ClassVar[str] = ""
    #: Equal inputs give equal chunks, so that an interrupted stream can go on at another worker.
    repeatable: ClassVar[bool] = False

    def load(self, device: str) -> None:
        """Load the model onto `cpu` or `cuda:N`, as this process sees it."""

    def predict(self, items: list[Any]) -> Sequence[Any]:
        """Return one result per item, in order. A result may be a `Failed`."""
        raise NotImplementedError


class IterativeEngine:
    """A model that works in steps: items join and leave the batch between any two.

    Optional methods:

    - `steps(item)`: the number of steps. Without it an item ends when `step` says so.
    - `save(state)` and `restore(item, saved)`: a dict of arrays, bytes and plain values, with which the work goes on at
      another worker.
    - `preview(state)`: a value to stream after each step, or None.
    - all optional methods of `Engine`.
    """

    max_batch_size: ClassVar[int | None] = None

    def load(self, device: str) -> None:
        """Load the model onto `cpu` or `cuda:N`, as this process sees it."""

    def start(self, item: Any) -> Any:
        """Return the state of a new item."""
        raise NotImplementedError

    def step(self, states: list[Any]) -> Sequence[bool] | None:
        """Advance all states in place; return which are done; None if `steps` tells. If it raises, none has changed."""
        raise NotImplementedError

    def result(self, state: Any) -> Any:
        """Return the result of a finished item."""
        raise NotImplementedError
