"""The list of metrics, the Grafana dashboards, and checks of both."""
