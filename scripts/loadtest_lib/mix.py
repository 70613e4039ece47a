"""The requests of a load test: what real users send, chosen at random. Standard library only."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from scripts.loadtest_lib.plan import LoadPlan, RecordedRequest, TargetModel

GENERATIONS, EDITS, JOBS, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/jobs", "/v1/chat/completions"
#: What kinds of users need: the task of a model.
USER_KINDS = {"image": "image", "edit": "image", "job": "image", "chat": "text"}
_PROMPTS = (
    "a lighthouse in a storm, oil on canvas",
    "an isometric map of a small harbour town",
    "a fox asleep in the snow, morning light",
    "the inside of a mechanical watch, macro photograph",
    "a poster for a jazz concert, two colours",
)
_QUESTIONS = (
    "How do I cook rice without a pot?",
    "Write a short poem about the sea.",
    "Explain how a heat pump works to a child.",
)
#: Most people ask for one image, and some look at it while it is made.
_COUNTS, _COUNT_WEIGHTS = (1, 2, 4), (8, 1, 1)
_STREAM_SHARE = 0.3
_CHAT_STREAM_SHARE = 0.7


class LoadRequest(NamedTuple):
    """One request. An edit's body becomes a form with a source image."""

    #: The kind of user, and whether the answer is a stream.
    kind: str
    path: str
    body: dict[str, Any]
    stream: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind} stream" if self.stream else self.kind


def random_request(plan: LoadPlan, kind: str, rng: random.Random) -> LoadRequest:
    """Return a request of this kind of user, for one of the models that take it."""
    model = rng.choice(models_for(plan.models, kind))
    if kind == "chat":
        return _chat(model.name, rng.choice((16, 32, 64, 128)), rng)
    steps = rng.randint(model.min_steps, model.max_steps)
    count = 1 if kind == "edit" else rng.choices(_COUNTS, _COUNT_WEIGHTS)[0]
    return _image(kind, model.name, steps, model.size, count, rng)


def recorded_request(recorded: RecordedRequest, models: Sequence[TargetModel], rng: random.Random) -> LoadRequest:
    """Return a request of the recorded cost. A model that the server does not have becomes the first of its task."""
    found = next((each for each in models if each.name == recorded.model), None)
    if found is None:
        task = "image" if recorded.size else "text"
        found = next((each for each in models if each.task == task), models[0])
    if found.task == "text":
        return _chat(found.name, max(recorded.steps, 1), rng)
    return _image("image", found.name, max(recorded.steps, 1), recorded.size or found.size, recorded.n, rng)


def models_for(models: Sequence[TargetModel], kind: str) -> list[TargetModel]:
    """Return the models that this kind of user can ask."""
    return [each for each in models if each.task == USER_KINDS[kind] and (kind != "edit" or each.edits)]


def _image(kind: str, model: str, steps: int, size: str, count: int, rng: random.Random) -> LoadRequest:
    body: dict[str, Any] = {"model": model, "prompt": rng.choice(_PROMPTS), "num_inference_steps": steps}
    body |= {"size": size, "seed": rng.randrange(2**31)}
    if kind == "edit":
        return LoadRequest(kind, EDITS, body | {"strength": 0.8})
    body |= {"n": count}
    if kind == "job":
        return LoadRequest(kind, JOBS, {"path": GENERATIONS, "body": body})
    if rng.random() < _STREAM_SHARE:
        return LoadRequest(kind, GENERATIONS, body | {"stream": True, "partial_images": 2}, stream=True)
    return LoadRequest(kind, GENERATIONS, body)


def _chat(model: str, tokens: int, rng: random.Random) -> LoadRequest:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": rng.choice(_QUESTIONS)}]}
    body |= {"max_tokens": tokens, "seed": rng.randrange(2**31)}
    if rng.random() < _CHAT_STREAM_SHARE:
        return LoadRequest("chat", CHAT, body | {"stream": True}, stream=True)
    return LoadRequest("chat", CHAT, body)
