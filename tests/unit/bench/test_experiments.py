"""The experiments: the search for held users, the published curves, the users of a load, and the figures."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from configs.settings import Settings
from scripts.bench.experiments import autoscaling, step_level, text_batches, thousand_users
from scripts.bench.experiments.experiment import draw_held_users, draw_picture, simulated_model
from scripts.bench.experiments.held_users import HeldUsers, find_held_users, is_held
from scripts.bench.experiments.step_curves import A10, A100, CURVES
from scripts.harness.load import LoadResult, RequestTemplate, closed_loop

LEVEL = {"answered": 10, "errors": 0, "p95_s": 1.0, "images_per_s": 2.0, "mean_s": 1.0}


async def search(limit: int, first: int) -> HeldUsers:
    async def measure(users: int) -> dict[str, Any]:
        return LEVEL | {"p95_s": 1.0 if users <= limit else 9.0}

    return await find_held_users(measure, 5.0, first)


@given(st.integers(1, 1000), st.integers(1, 200))
async def test_search_ends_close_below_the_limit(limit: int, first: int) -> None:
    found = await search(limit, first)
    assert found.held <= limit <= max(1.08 * found.held, found.held + 1)
    users = [level["users"] for level in found.levels]
    assert users == sorted(set(users))


async def test_search_of_a_server_that_holds_nobody() -> None:
    assert (await search(0, 8)).held == 0


async def test_search_of_a_server_without_a_limit_ends() -> None:
    assert (await search(10**9, 64)).held == 4096


@pytest.mark.parametrize(
    ("level", "held"),
    [
        (LEVEL, True),
        (LEVEL | {"p95_s": 5.1}, False),
        (LEVEL | {"errors": 1}, False),
        (LEVEL | {"answered": 0}, False),
        (LEVEL | {"p95_s": float("nan")}, False),
    ],
)
def test_held_means_in_time_without_an_error(level: dict[str, Any], held: bool) -> None:
    assert is_held(level, 5.0) is held


@pytest.mark.parametrize("curve", CURVES.values(), ids=lambda curve: curve.name)
def test_line_is_close_to_what_was_published(curve: Any) -> None:
    for batch, seconds in curve.published.items():
        assert curve.step_s(batch) == pytest.approx(seconds, rel=0.2)


def test_line_of_the_a100_meets_the_ends() -> None:
    assert A100.step_s(1) == pytest.approx(A100.published[1], rel=0.001)
    assert A100.step_s(16) == pytest.approx(A100.published[16], rel=0.001)


def test_speed_divides_all_times() -> None:
    assert A10.sim(2.0) == {"t0_s": A10.t0_s / 2, "t1_s": A10.t1_s / 2}


@pytest.mark.parametrize(
    "config",
    [
        {"models": {"sim": simulated_model(A100, 12)}},
        {"models": {"sim": simulated_model(A10, 6, batching=step_level.MODES["whole requests"])}},
        autoscaling._config(4),
    ],
)
def test_configurations_are_valid(config: dict[str, Any]) -> None:
    Settings.model_validate(config)


def test_requests_are_drawn_with_steps_and_a_choice() -> None:
    template = RequestTemplate({"prompt": "x"}, (3, 5), choices=({"n": 1}, {"n": 2}))
    drawn = [template.draw(random.Random(number)) for number in range(60)]
    assert {each["num_inference_steps"] for each in drawn} == {3, 4, 5}
    assert {each["n"] for each in drawn} == {1, 2}
    assert len({each["seed"] for each in drawn}) > 50


async def run_users(status: int, seconds: float, **options: Any) -> LoadResult:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_post("/v1/images/generations", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        return await closed_loop(f"http://{host}:{port}", 3, seconds, RequestTemplate({}), **options)
    finally:
        await runner.cleanup()


async def test_users_that_are_answered_are_counted() -> None:
    for seconds in (0.3, 3.0, 30.0):  # of a busy machine
        result = await run_users(200, seconds, warm_up_s=0.1, pause_s=0.01)
        if result.answered:
            break
    assert result.errors == 0
    assert result.answered
    assert result.latencies


async def test_refused_users_are_errors_and_do_not_spin() -> None:
    for seconds in (0.3, 3.0, 30.0):  # of a busy machine
        result = await run_users(429, seconds)
        if result.errors:
            break
    # Each of three users pauses for 50 ms after an error.
    assert 0 < result.errors <= 3 * (20 * seconds + 1)
    assert result.answered == 0


@pytest.mark.parametrize(
    ("totals", "memory", "failing"),
    [
        ({}, {}, set()),
        ({"max_users": 900}, {}, {"more than 1000 users"}),
        ({"errors": 1}, {}, {"no error other than 429"}),
        ({"own_share_p99_ms": 60.0}, {}, {"own share p99 below 50 ms"}),
        ({"own_share_p99_ms": None}, {}, {"own share p99 below 50 ms"}),
        ({}, {"is_flat": False}, {"memory is flat"}),
    ],
)
def test_checks_of_a_thousand_users(totals: dict[str, Any], memory: dict[str, Any], failing: set[str]) -> None:
    report = {
        "totals": {"max_users": 1050, "ok": 9, "refused": 0, "errors": 0, "own_share_p99_ms": 9.0} | totals,
        "memory": {"is_flat": True} | memory,
    }
    checks = thousand_users.checks_of(report)
    assert {name for name, holds in checks.items() if not holds} == failing
    summary = thousand_users.summary_of(report, checks)
    assert all(name in summary for name in failing)
    assert ("does not hold" in summary) is bool(failing)


def text_rows(continuous: Mapping[int, float], whole: Mapping[int, float]) -> list[dict[str, Any]]:
    return [
        {"model": "m", "mode": mode, "batch": batch, "tokens_per_cpu_s": rate}
        for mode, rates in (("continuous", continuous), ("whole requests", whole))
        for batch, rate in rates.items()
    ]


def test_best_batch_is_the_smallest_of_nearly_the_most() -> None:
    rows = text_rows({1: 10.0, 8: 96.0, 16: 100.0}, {1: 10.0, 8: 48.0, 16: 40.0})
    assert text_batches._best(rows, "m") == 8
    assert text_batches._gain(rows, "m") == pytest.approx(2.5)


def test_pictures_are_drawn(tmp_path: Path) -> None:
    search = {"held": 5, "levels": [LEVEL | {"users": 4}, LEVEL | {"users": 8}]}
    draw_picture(tmp_path / "held.png", {"searches": {"one": search}, "bound_s": 15.0}, draw_held_users)
    rows = text_rows({1: 10.0, 8: 96.0}, {1: 10.0, 8: 48.0})
    draw_picture(tmp_path / "text.png", {"rows": rows, "published": {"best_batch": [16, 32]}}, text_batches.draw)
    assert {file.name for file in tmp_path.iterdir()} == {"held.png", "text.png"}
