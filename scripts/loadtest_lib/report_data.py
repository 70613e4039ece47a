"""The figures of a load test, from the records of its seconds and the samples of the server. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.loadtest_lib.histogram import DurationHistogram
from scripts.loadtest_lib.records import LATENESS, OWN_SHARE, LoadSecond
from scripts.loadtest_lib.sampler import ServerSample
from scripts.soak import Sample, slope_of

#: A chart has at most this many points.
_MAX_POINTS = 240
_QUANTILES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
_ALL = "all requests"
#: Fewer requests have no slope.
_MIN_SLOPE_REQUESTS = 1000
#: Memory is flat if it grows by less than this share in the second half of the test.
_FLAT_SHARE = 0.03
#: Samples whose mean is the size at one moment.
_AVERAGED = 5


def report_data(
    seconds: Mapping[int, LoadSecond],
    samples: Sequence[ServerSample],
    decisions: Sequence[Mapping[str, Any]],
    measured_from_s: float = 0.0,
) -> dict[str, Any]:
    """Return totals, a row for each kind of request, series over time, and the decisions that were made meanwhile.

    Latencies count from `measured_from_s` seconds after the first record, when a ramp has ended.
    """
    if not seconds:
        return {
            "totals": {"ok": 0, "refused": 0, "errors": 0},
            "kinds": [],
            "errors": [],
            "series": {},
            "decisions": [],
        }
    start, end = min(seconds), max(seconds) + 1
    measured = LoadSecond()
    everything = LoadSecond()
    for second, record in sorted(seconds.items()):
        everything.merge(record)
        if second >= start + measured_from_s:
            measured.merge(record)
    during = [sample for sample in samples if start <= sample.time < end]
    made = [each for each in decisions if start <= each["time"] < end]
    return {
        "totals": _totals(seconds, everything, measured),
        "kinds": _kinds(everything, measured),
        "durations": {
            name: quantiles(histogram)
            for name, histogram in sorted(measured.durations.items())
            if histogram.count and name not in {name for name, _ in everything.outcomes}
        },
        "errors": [{"text": text, "count": count} for text, count in everything.errors.most_common()],
        "memory": _memory(seconds, during),
        "series": _series(seconds, during, start, end),
        "decisions": [dict(each) | {"at_s": each["time"] - start} for each in made],
    }


def quantiles(histogram: DurationHistogram) -> dict[str, float | int | None]:
    """Return the number of durations, their quantiles and mean in milliseconds."""
    values = {name: histogram.quantile(share) for name, share in _QUANTILES.items()} | {"mean_ms": histogram.mean()}
    rounded = {name: None if each is None else round(1000 * each, 2) for name, each in values.items()}
    return {"count": histogram.count} | rounded


def _totals(seconds: Mapping[int, LoadSecond], everything: LoadSecond, measured: LoadSecond) -> dict[str, Any]:
    duration = max(seconds) + 1 - min(seconds)
    return {
        "seconds": duration,
        "ok": everything.count("ok"),
        "refused": everything.count("refused"),
        "errors": everything.count("error"),
        "ok_per_s": everything.count("ok") / duration,
        "max_users": max(each.users for each in seconds.values()),
        "max_in_flight": max(each.in_flight for each in seconds.values()),
        "own_share_p99_ms": quantiles(measured.durations[OWN_SHARE])["p99_ms"],
        "sent_late_p99_ms": quantiles(measured.durations[LATENESS])["p99_ms"],
    }


def _kinds(everything: LoadSecond, measured: LoadSecond) -> list[dict[str, Any]]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (name, outcome), count in everything.outcomes.items():
        counts[name][outcome] += count
        counts[_ALL][outcome] += count
    rows = []
    for name in [*sorted(counts.keys() - {_ALL}), *([_ALL] if counts else [])]:
        histogram = _all_requests(measured) if name == _ALL else measured.durations[name]
        by = counts[name]
        rows.append({"name": name, "ok": by["ok"], "refused": by["refused"], "errors": by["error"]} | _row(histogram))
    return rows


def _row(histogram: DurationHistogram) -> dict[str, Any]:
    return {name: value for name, value in quantiles(histogram).items() if name != "count"}


def _all_requests(second: LoadSecond) -> DurationHistogram:
    merged = DurationHistogram()
    for name in {name for name, _ in second.outcomes}:
        if name in second.durations:
            merged.merge(second.durations[name])
    return merged


def _memory(seconds: Mapping[int, LoadSecond], samples: Sequence[ServerSample]) -> dict[str, Any] | None:
    """Return the balancer's memory, and its slope over the requests of the second half; None if it is not known."""
    known = [sample for sample in samples if sample.rss is not None]
    if len(known) < 6:
        return None
    done, passed = dict[int, int](), 0
    for second in range(min(seconds), max(seconds) + 1):
        passed += sum(seconds[second].outcomes.values()) if second in seconds else 0
        done[second] = passed
    points = [Sample(done.get(int(each.time), passed), each.rss or 0) for each in known]
    half = points[len(points) // 2 :]
    first, middle, last = (_mean_rss(part) for part in (points[:_AVERAGED], half[:_AVERAGED], points[-_AVERAGED:]))
    sizes = {"first_mib": first, "half_mib": middle, "last_mib": last}
    result: dict[str, Any] = {name: round(size / 2**20, 1) for name, size in sizes.items()}
    result |= {"second_half_growth": round(last / middle - 1, 4), "is_flat": last / middle - 1 < _FLAT_SHARE}
    if half[-1].requests - half[0].requests >= _MIN_SLOPE_REQUESTS:
        slope = slope_of(half)
        result |= {"bytes_per_1000_requests": round(slope.slope), "error": round(slope.error)}
    return result


def _mean_rss(points: Sequence[Sample]) -> float:
    return sum(point.rss for point in points) / len(points)


def _series(
    seconds: Mapping[int, LoadSecond], samples: Sequence[ServerSample], start: int, end: int
) -> dict[str, list[float | int | None]]:
    """Return columns by interval; the time of a row is the middle of its interval, in seconds from the start."""
    step = max(math.ceil((end - start) / _MAX_POINTS), 1)
    columns: defaultdict[str, list[float | int | None]] = defaultdict(list)
    for begin in range(start, end, step):
        own = [seconds[second] for second in range(begin, begin + step) if second in seconds]
        merged = LoadSecond()
        for each in own:
            merged.merge(each)
        columns["at_s"].append(begin - start + step / 2)
        columns["users"].append(max((each.users for each in own), default=0))
        columns["in_flight"].append(max((each.in_flight for each in own), default=0))
        columns["ok_per_s"].append(merged.count("ok") / step)
        columns["refused_per_s"].append(merged.count("refused") / step)
        columns["errors_per_s"].append(merged.count("error") / step)
        for prefix, histogram in (("", _all_requests(merged)), ("own_share_", merged.durations[OWN_SHARE])):
            found = quantiles(histogram)
            for name in _QUANTILES:
                columns[prefix + name].append(found[name])
        here = [sample for sample in samples if begin <= sample.time < begin + step]
        for name in ("workers", "queued", "running", "rss"):
            columns[name].append(getattr(here[-1], name) if here else None)
    return dict(columns)
