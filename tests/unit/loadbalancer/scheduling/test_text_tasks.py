"""Text tasks in the scheduler: their tokens are their state, wherever they run."""

from __future__ import annotations

import pytest

from loadbalancer.scheduling.events import SendMessage, TasksSubmitted, Tick, WorkerLost
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task import Task, TaskCompleted, TaskStarted, TaskTokens
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.scheduling.text_work import PromptSteps
from tests.support.scheduler import assignments, connect, new_scheduler, receive, sent_frames, updates
from wire.inputs import NO_SHAPE, Sampling, TextInputs
from wire.messages import Assign, Cancel, Finished, Heartbeat, Preempted, Started, StepCurve, Tokens
from wire.text import PlainPrompt, TextCounters, TokenOutput, encode_prompt, unpack_tokens
from wire.text import TaskTokens as WireTokens

PROMPT = encode_prompt(PlainPrompt("Once upon a time"))


def text_task(name: str = "t", max_tokens: int = 100, owner: str = "anonymous") -> Task:
    inputs = TextInputs(Sampling(seed=1), max_tokens)
    return Task(name, "m", inputs, 0.0, 1000.0, owner=owner, steps=inputs.steps, sources=[PROMPT])


def running(max_tokens: int = 100) -> Scheduler:
    """A scheduler whose worker `a` runs task `t`."""
    core = new_scheduler()
    connect(core, "a", 4)
    core.handle(TasksSubmitted([text_task(max_tokens=max_tokens)]), 0.0)
    receive(core, "a", Started("t", 1), 0.0)
    return core


def tokens(index: int, *ids: int, finish: str = "", attempt: int = 1, prompt: int = 0) -> Tokens:
    output = TokenOutput(index, list(ids), "x" * len(ids), finish, prompt_tokens=prompt)  # type: ignore[arg-type]
    return Tokens([WireTokens("t", attempt, output)])


def test_text_runs_from_submission_to_completion() -> None:
    core = new_scheduler()
    connect(core, "a", 4)
    effects = core.handle(TasksSubmitted([text_task()]), 0.0)
    assert sent_frames(effects) == [PROMPT]
    first = tokens(0, 7, prompt=5)
    assert updates(receive(core, "a", first, 1.0)) == [TaskStarted("t"), TaskTokens("t", first.tasks[0].output)]
    last = tokens(1, 8, 9, finish="stop")
    assert updates(receive(core, "a", last, 2.0)) == [TaskTokens("t", last.tasks[0].output)]
    assert updates(receive(core, "a", Finished("t", 1, ()), 2.0)) == [TaskCompleted("t", (), 1.0, 1.0)]
    assert core.tasks == {}


@pytest.mark.parametrize("how", ["lost", "preempted"])
def test_text_continues_elsewhere_after_its_tokens(how: str) -> None:
    core = running()
    receive(core, "a", tokens(0, 7, 8, 9), 1.0)
    connect(core, "b", 4, 1.0)
    if how == "lost":
        effects = core.handle(WorkerLost("a", "killed"), 2.0)
    else:
        receive(core, "a", Preempted("t", 1), 2.0)
        effects = core.handle(WorkerLost("a", "drained"), 2.0)
    if not assignments(effects):  # it went back to `a`, which is lost now
        effects = core.handle(Tick(), 2.1)
    [(worker, given)] = assignments(effects)
    assert (worker, given.step, given.frames) == ("b", 3, 2)
    prompt, state = sent_frames(effects)
    assert (prompt, list(unpack_tokens(state))) == (PROMPT, [7, 8, 9])
    assert core.counters["steps_redone"] == 0
    again = tokens(3, 10, attempt=given.attempt)
    assert updates(receive(core, "b", again, 3.0)) == [TaskStarted("t"), TaskTokens("t", again.tasks[0].output)]


@pytest.mark.parametrize(
    ("wrong", "counted_as"),
    [
        (tokens(1, 8), "invalid_results"),
        (tokens(5, 8), "missing_outputs"),
        (tokens(2, *range(99)), "invalid_results"),
    ],
    ids=["repeated", "gap", "too many"],
)
def test_tokens_that_do_not_continue_are_generated_again(wrong: Tokens, counted_as: str) -> None:
    core = running()
    receive(core, "a", tokens(0, 7, 8), 1.0)
    effects = receive(core, "a", wrong, 2.0)
    assert SendMessage("a", Cancel(["t"])) in effects
    assert not [update for update in updates(effects) if isinstance(update, TaskTokens)]
    assert core.counters[counted_as] == 1
    assert core.counters["invalid_results"] + core.counters["missing_outputs"] == 1
    assert core.tasks["t"].state is not TaskState.FAILED


def test_text_goes_on_after_its_worker_has_connected_again() -> None:
    """Tokens may have been lost with the connection: the worker is told to go on after those that have arrived."""
    core = running()
    receive(core, "a", tokens(0, 7, 8), 1.0)
    effects = connect(core, "a", 4, 2.0, running={"t": 1})
    [(worker, given)] = assignments(effects)
    assert (worker, given.attempt, given.step) == ("a", 2, 2)
    assert list(unpack_tokens(sent_frames(effects)[1])) == [7, 8]
    sent = [each.message for each in effects if isinstance(each, SendMessage)]
    assert sent.index(Cancel(["t"])) < next(i for i, message in enumerate(sent) if isinstance(message, Assign))
    assert updates(receive(core, "a", tokens(5, 8), 3.0)) == [], "of the attempt before"
    again = tokens(2, 9, attempt=2)
    assert updates(receive(core, "a", again, 4.0)) == [TaskStarted("t"), TaskTokens("t", again.tasks[0].output)]
    assert core.counters["invalid_results"] == core.counters["missing_outputs"] == core.tasks["t"].crashes == 0


def test_stale_tokens_are_dropped() -> None:
    core = running()
    assert updates(receive(core, "a", tokens(0, 7, attempt=2), 1.0)) == []
    assert core.counters["stale"] == 1


def test_longer_texts_are_expected_to_go_on() -> None:
    core = running(max_tokens=400)
    task = core.tasks["t"]
    assert task.remaining_steps == 128, "no result is known yet"
    for index in range(300):
        receive(core, "a", tokens(index, 1), 1.0)
        assert 0 < task.remaining_steps <= 400 - len(task.tokens)
    receive(core, "a", tokens(300, 1, finish="stop"), 1.0)
    assert task.remaining_steps == 0


def test_expected_length_follows_the_results() -> None:
    core = running()
    receive(core, "a", tokens(0, *range(20), finish="stop"), 1.0)
    receive(core, "a", Finished("t", 1, ()), 1.0)
    core.handle(TasksSubmitted([text_task("u")]), 2.0)
    assert core.tasks["u"].remaining_steps == 20


def test_prompts_count_by_measured_rates() -> None:
    core = new_scheduler()
    connect(core, "a", 4)
    curve = StepCurve(NO_SHAPE, 4, [(1, 0.1), (4, 0.2)])
    measured = TextCounters(prompt_tokens=1000, prefill_s=10.0)
    receive(core, "a", Heartbeat(running=0, curves=[curve], text=measured), 0.0)
    core.handle(Tick(), 0.1)
    core.handle(TasksSubmitted([text_task()]), 0.2)
    receive(core, "a", tokens(0, 7, prompt=100), 1.0)
    task = core.tasks["t"]
    # 100 tokens take 1 s: 10 steps of 0.1 s alone, 20 places of 0.05 s in full batches.
    assert task.prompt == PromptSteps(10, 20)
    assert task.step == 11
    assert core.store.text_work["m"].prompt_tokens(len(PROMPT)) >= 1


@pytest.mark.parametrize("how", ["lost", "preempted", "back without it"])
def test_text_at_its_end_is_complete_without_its_worker(how: str) -> None:
    core = running()
    receive(core, "a", tokens(0, 7, 8, finish="stop"), 1.0)
    if how == "lost":
        effects = core.handle(WorkerLost("a", "killed"), 2.0)
    elif how == "preempted":
        effects = receive(core, "a", Preempted("t", 1), 2.0)
    else:
        effects = connect(core, "a", 4, 2.0)
    assert TaskCompleted("t", (), 0.0, 2.0) in updates(effects)
    assert core.tasks == {}


def test_text_of_an_earlier_balancer_begins_again() -> None:
    core = new_scheduler(hold_s=5.0)
    task = text_task()
    task.may_be_running = True
    core.handle(TasksSubmitted([task]), 0.0)
    effects = connect(core, "a", 4, 1.0, running={"t": 3})
    assert Cancel(["t"]) in [effect.message for effect in effects if isinstance(effect, SendMessage)]
    [(worker, given)] = assignments(effects)
    assert (worker, given.step, given.attempt) == ("a", 0, 4), "its tokens so far are unknown here"
    stale = tokens(9, 7, attempt=3)
    assert updates(receive(core, "a", stale, 2.0)) == []
    assert core.counters["invalid_results"] == 0
