"""The dashboards: overview, models, workers and devices, tenants, autoscaling."""

from __future__ import annotations

from scripts.monitoring.dashboards import autoscaling, models, overview, tenants, workers

DASHBOARDS = tuple(module.DASHBOARD for module in (overview, models, workers, tenants, autoscaling))
