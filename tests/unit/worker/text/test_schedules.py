"""Random schedules of two text engines: each text is as if it ran alone, and no block is lost.

Texts join, leave, lose their blocks, share beginnings, are computed in parts, and move between the engines.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.text_engine import GREEDY, TextDriver, request, text_engine
from wire.inputs import Sampling
from wire.text import TokenOutput
from worker.engines.text.row import TextRow

#: (family, its configuration, blocks, tokens of prompts in a step, prefix cache) of two engines.
_PAIRS: Sequence[Sequence[tuple[str, dict[str, Any], int, int, bool]]] = (
    (("llama", {}, 10, 17, True), ("llama", {}, 20, 40, True)),
    (("qwen3", {}, 10, 30, False), ("qwen3", {}, 16, 16, True)),
    (("mistral", {"sliding_window": 12}, 10, 23, True), ("mistral", {"sliding_window": 12}, 40, 19, False)),
    (("qwen2", {}, 11, 16, True), ("qwen2", {}, 24, 300, True)),
)
_SCHEMA = '{"type": "object", "properties": {"a": {"enum": ["xy", 12]}, "b": {"type": "integer"}}, "required": ["a"]}'
_SAMPLINGS = (
    GREEDY,
    Sampling(3, temperature=0.8),
    Sampling(3, temperature=0.0, frequency_penalty=0.7),
    Sampling(4, temperature=1.3, top_k=20, repetition_penalty=1.3),
    Sampling(5, temperature=1.0, top_p=0.9, min_p=0.01, presence_penalty=0.5, frequency_penalty=0.3),
    Sampling(6, temperature=0.9, logit_bias=((50, 4.0), (60, -100.0))),
    Sampling(7, temperature=0.0, repetition_penalty=0.6, logit_bias=((70, 2.0),)),
)
_OPTIONS: Sequence[dict[str, Any]] = (
    {},
    {"stop": ("e", "an")},
    {"stop": ("z é",), "stop_token_ids": (40, 90, 200), "min_tokens": 3},
    {"logprobs": 3},
    {"json_schema": _SCHEMA, "ignore_eos": False},
    {"ignore_eos": False, "min_tokens": 2},
)


class Task(NamedTuple):
    """A text: its prompt has `common` tokens of a beginning that others have, too. Kinds differ in the first block."""

    kind: int
    common: int
    own: tuple[int, ...]
    tokens: int
    sampling: int
    options: int

    @property
    def prompt(self) -> list[int]:
        common = [20 + 7 * place % 400 + (self.kind if place < 16 else 0) for place in range(self.common)]
        return [*common, *self.own]

    def request(self, done: Sequence[int] = ()) -> Any:
        return request(self.prompt, self.tokens, _SAMPLINGS[self.sampling], done, **_OPTIONS[self.options])


_TASKS = st.builds(
    Task,
    kind=st.integers(0, 1),
    common=st.sampled_from((0, 15, 16, 17, 32, 47, 64)),
    own=st.lists(st.integers(10, 420), min_size=1, max_size=20).map(tuple),
    tokens=st.integers(1, 60),
    sampling=st.integers(0, len(_SAMPLINGS) - 1),
    options=st.integers(0, len(_OPTIONS) - 1),
)


class Result(NamedTuple):
    """What a text is, without the pieces in which it came."""

    tokens: list[int]
    text: str
    finish: str
    stop_reason: str | int | None
    logprobs: list[tuple[bytes, tuple[bytes, ...]]]


def result(outputs: Sequence[TokenOutput]) -> Result:
    logprobs = [(each.token, tuple(token for token, _ in each.top)) for part in outputs for each in part.logprobs]
    tokens = [token for part in outputs for token in part.tokens]
    last = outputs[-1]
    return Result(tokens, "".join(part.text for part in outputs), last.finish, last.stop_reason, logprobs)


@functools.cache
def engine(family: str, config: tuple[tuple[str, Any], ...], blocks: int, step_tokens: int, prefix_cache: bool) -> Any:
    text = {"context_length": 160, "step_tokens": step_tokens, "prefix_cache": prefix_cache}
    return text_engine(family, blocks=blocks, config=dict(config), **text)


@functools.cache
def alone(family: str, config: tuple[tuple[str, Any], ...], task: Task) -> Result:
    """What the text is in an engine with room for all of it, where nothing else runs or ran."""
    driver = TextDriver(engine(family, config, 128, 300, False))
    driver.admit(0, task.request())
    driver.run()
    return result(driver.outputs[0])


def rows(driver: TextDriver) -> list[TextRow]:
    return cast("list[TextRow]", list(driver.rows.values()))


class ScheduleMachine(RuleBasedStateMachine):
    """Two engines of one model, with few blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.drivers: list[TextDriver] = []
        self.numbers = itertools.count()
        self.tasks: dict[int, Task] = {}
        self.moved: dict[int, list[TokenOutput]] = {}

    @precondition(lambda self: not self.drivers)
    @rule(pair=st.integers(0, len(_PAIRS) - 1))
    def choose_engines(self, pair: int) -> None:
        family, config, *_ = _PAIRS[pair][0]
        self.model = (family, tuple(config.items()))
        self.drivers = [TextDriver(engine(*self.model, *rest)) for _, _, *rest in _PAIRS[pair]]

    @precondition(lambda self: self.drivers)
    @rule(place=st.integers(0, 1), tasks=st.lists(_TASKS, min_size=1, max_size=3), copies=st.integers(1, 2))
    def join(self, place: int, tasks: list[Task], copies: int) -> None:
        for task in tasks * copies:
            number = next(self.numbers)
            self.tasks[number] = task
            self.drivers[place].admit(number, task.request())

    @precondition(lambda self: any(driver.rows for driver in self.drivers))
    @rule(place=st.integers(0, 1), steps=st.integers(1, 6))
    def step(self, place: int, steps: int) -> None:
        for _ in range(steps):
            self._step(self.drivers[place])

    def _step(self, driver: TextDriver) -> None:
        """The oldest text goes on in each step."""
        if not driver.rows:
            return
        row = min(rows(driver), key=lambda each: each.cached.age)
        before = row.step, row.cached.computed
        driver.step()
        assert not driver.errors
        assert row.step > before[0] or row.cached.computed > before[1] or row.step >= row.steps

    @precondition(lambda self: any(driver.rows for driver in self.drivers))
    @rule(data=st.data())
    def step_some(self, data: st.DataObject) -> None:
        """As the step loop does when it shares the steps between more rows than fit."""
        driver = data.draw(st.sampled_from([driver for driver in self.drivers if driver.rows]))
        driver.step(data.draw(st.lists(st.sampled_from(list(driver.rows)), min_size=1, unique=True)))
        assert not driver.errors

    @precondition(lambda self: any(driver.rows for driver in self.drivers))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        running = [(driver, number) for driver in self.drivers for number in driver.rows]
        driver, number = data.draw(st.sampled_from(running))
        driver.release(number)
        del self.tasks[number]

    @precondition(lambda self: any(driver.rows for driver in self.drivers))
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        """As when a worker drains."""
        driver = data.draw(st.sampled_from([driver for driver in self.drivers if driver.rows]))
        other = self.drivers[1 - self.drivers.index(driver)]
        for number in data.draw(st.lists(st.sampled_from(list(driver.rows)), min_size=1, unique=True)):
            driver.release(number)
            outputs = self.moved.setdefault(number, [])
            outputs += driver.outputs.pop(number)
            done = [token for output in outputs for token in output.tokens]
            other.admit(number, self.tasks[number].request(done))

    @invariant()
    def no_block_is_lost(self) -> None:
        for driver in self.drivers:
            held = {block for row in rows(driver) for block in row.cached.blocks}
            assert driver.engine.text_counters().used_blocks == len(held)

    def teardown(self) -> None:
        try:
            self._run_to_end()
        finally:  # the next schedule has the same engines: a shared prefix cache would make it depend on this one
            for driver in self.drivers:
                for number in list(driver.rows):
                    driver.release(number)
                planner = driver.engine._planner
                planner.manager.forget(range(planner.blocks))

    def _run_to_end(self) -> None:
        for driver in self.drivers:
            bound = sum(len(row.cached.tokens) + row.steps for row in rows(driver))
            for _ in range(2 * bound):
                self._step(driver)
            assert not driver.rows
            assert driver.engine.text_counters().used_blocks == 0
        for number, task in self.tasks.items():
            own = [driver.outputs[number] for driver in self.drivers if number in driver.outputs]
            outputs = [*self.moved.get(number, []), *(output for each in own for output in each)]
            assert result(outputs) == alone(*self.model, task), task


ScheduleMachine.TestCase.settings = settings(
    max_examples=35, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSchedules = ScheduleMachine.TestCase
