"""Parts of expressions that several dashboards have."""

from __future__ import annotations

from scripts.monitoring.panels import Query, Variable

#: The range of rates: Grafana replaces it by some scrape intervals.
RATE = "[$__rate_interval]"
#: What the variables of a dashboard select.
MODEL = 'model=~"$model"'
WORKER = 'model=~"$model",worker=~"$worker"'
OWNER = 'model=~"$model",owner=~"$owner"'
MODELS_VARIABLE = Variable("model", "muster_slo_max_wait_seconds", "model")
PROMISE_COLORS = (("red", 0), ("orange", 0.95), ("green", 0.99))
NONE_IS_GOOD = (("green", 0), ("red", 1))


def goodput(by: str = "", seconds: str = RATE) -> str:
    """Return the share of tasks that started in time, by a label or of all."""
    group = f" by ({by})" if by else ""
    met = f'sum{group} (rate(muster_slo_tasks_total{{{MODEL},result="met"}}{seconds}))'
    return f"{met} / sum{group} (rate(muster_slo_tasks_total{{{MODEL}}}{seconds}))"


def quantiles(metric: str) -> list[Query]:
    """Return the median and the 95th percentile of a histogram by model."""
    return [
        Query(
            f"histogram_quantile({quantile}, sum by (le, model) (rate({metric}_bucket{{{MODEL}}}{RATE})))",
            f"{{{{model}}}} p{quantile * 100:g}",
        )
        for quantile in (0.5, 0.95)
    ]


def mean(numerator: str, denominator: str, selector: str, by: str) -> str:
    """Return a mean from two counters, by labels."""
    top, bottom = (f"sum by ({by}) (rate({name}{{{selector}}}{RATE}))" for name in (numerator, denominator))
    return f"{top} / {bottom}"
