"""Dashboards and alerts name what exists; `promtool` parses and tries them where it is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.harness.processes import ROOT
from scripts.monitoring.catalog import families, series
from scripts.monitoring.expressions import problems, selectors
from scripts.monitoring.grafana import FOLDER, files, main, queries, stale_files, without_variables

MONITORING = ROOT / "docs" / "deploy" / "monitoring"
KNOWN = series(families().values())
RULES = yaml.safe_load((MONITORING / "muster.rules.yml").read_text())["groups"][0]["rules"]
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


@pytest.mark.parametrize(
    ("expr", "legend", "problem"),
    [
        ('sum by (model) (rate(muster_tasks_total{kind="image"}[5m]))', "{{model}}", None),
        ('up{job="muster"} == 0', "{{instance}}", None),
        ('muster_workers{model=~"a{1,2}",state="ready"}', "", None),
        ("rate(muster_queue_wait_seconds_bucket[5m])", "{{le}}", None),
        ("rate(muster_queue_wait_seconds[5m])", "", "there is no metric muster_queue_wait_seconds"),
        ("muster_tasks", "", "there is no metric muster_tasks"),
        ('muster_workers{worker="a"}', "", "muster_workers has no label worker"),
        ("sum by (device) (muster_workers)", "", "no metric of it has the label device"),
        ("muster_workers", "{{device}}", "no metric of it has the label device"),
        ("vector(1)", "", "it names no metric"),
    ],
)
def test_what_expressions_name(expr: str, legend: str, problem: str | None) -> None:
    assert list(problems(expr, legend, KNOWN)) == ([problem] if problem else [])


@pytest.mark.parametrize("query", [*queries()], ids=lambda query: query.place)
def test_dashboards_name_what_exists(query: Any) -> None:
    assert list(problems(query.expr, query.legend, KNOWN)) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alerts_name_what_exists_and_are_explained(rule: dict[str, Any]) -> None:
    assert list(problems(rule["expr"], "", KNOWN)) == []
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    page, anchor = rule["annotations"]["runbook_url"].split("#")
    headings = {line[3:].lower() for line in (ROOT / page).read_text().splitlines() if line.startswith("## ")}
    assert anchor == rule["alert"].lower()
    assert anchor in headings
    used = {label for text in rule["annotations"].values() for label in re.findall(r"\$labels\.(\w+)", text)}
    available = {label for selector in selectors(rule["expr"]) for label in KNOWN.get(selector.metric, ())}
    assert used <= available | {"job", "instance"}


def test_every_alert_is_tried_and_every_section_has_one() -> None:
    tests = (MONITORING / "muster.rules.test.yml").read_text()
    alerts = {rule["alert"] for rule in RULES}
    assert set(re.findall(r'alertname="(\w+)", alertstate="firing", ', tests)) == alerts
    assert set(re.findall(r"^## (\w+)$", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE)) == alerts


def test_files_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(stale_files()) == []
    assert main(["--check"]) == 0
    assert "expressions" in capsys.readouterr().out


@pytest.mark.parametrize("name", files())
def test_structure_of_dashboards(name: str) -> None:
    model = json.loads((FOLDER / name).read_text())
    panels = [panel for panel in model["panels"] if panel["type"] != "row"]
    assert model["links"][0]["tags"] == model["tags"]
    assert [variable["name"] for variable in model["templating"]["list"]][:2] == ["datasource", "model"]
    assert len({panel["id"] for panel in model["panels"]}) == len(model["panels"])
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"
    places = [
        (x, y)
        for panel in model["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places)), "panels overlap"


@needs_promtool
def test_rules_are_valid_and_fire_as_they_should() -> None:
    for command in (["check", "rules", "muster.rules.yml"], ["test", "rules", "muster.rules.test.yml"]):
        done = subprocess.run(["promtool", *command], cwd=MONITORING, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_parses_all_expressions(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": without_variables(query.expr)} for number, query in enumerate(queries())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def bind_mounts(service: dict[str, Any]) -> Iterator[str]:
    for mount in service.get("volumes", ()):
        source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", mount).split(":")[0]
        if source.startswith("."):
            yield source


def test_structure_of_the_compose_file() -> None:
    compose = yaml.safe_load((MONITORING / "compose.yaml").read_text())
    assert set(compose["services"]) == {"muster", "prometheus", "grafana"}
    for name, service in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert all((MONITORING / source).exists() for source in bind_mounts(service)), name
        assert "build" in service or re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), name
        named = {mount.split(":")[0] for mount in service["volumes"]} - set(bind_mounts(service))
        assert {each for each in named if not each.startswith("$")} <= set(compose["volumes"]), name
        assert set(service.get("secrets", ())) <= set(compose["secrets"]), name
        assert set(service.get("depends_on", ())) <= set(compose["services"]), name
    assert (MONITORING / compose["services"]["muster"]["build"] / "Dockerfile").exists()


def test_files_for_containers_agree() -> None:
    prometheus = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    [scrape] = prometheus["scrape_configs"]
    assert scrape["job_name"] == "muster", "the alerts name it"
    assert scrape["static_configs"] == [{"targets": ["muster:8000"]}]
    source = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert source["datasources"][0]["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    provider = yaml.safe_load((MONITORING / "grafana/provisioning/dashboards/muster.yml").read_text())
    mounts = yaml.safe_load((MONITORING / "compose.yaml").read_text())["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['providers'][0]['options']['path']}:ro" in mounts
