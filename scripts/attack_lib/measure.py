"""Measures the balancer while it is attacked: memory, answers of `/healthz`, size of the logs."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from scripts.attack_lib.attack import Attack, BoundBroken, Outcome, judge
from scripts.attack_lib.probe import ProbeResult
from scripts.attack_lib.target import Target
from scripts.harness.processes import PATIENCE_S, ROOT

#: Growth of the logs that a server has by itself in the time of an attack.
_SETTLE_S = 0.3


class HealthProbe:
    """Runs the probe in a process of its own."""

    def __init__(self, port: int, pid: int | None) -> None:
        command = [sys.executable, "-m", "scripts.attack_lib.probe", str(port), str(pid or 0)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def end(self) -> ProbeResult:
        output, _ = self._process.communicate(timeout=2 * PATIENCE_S)
        return ProbeResult(**json.loads(output))


def attack_single(attack: Attack, target: Target) -> Outcome:
    """Run the attack and judge it."""
    outcome = Outcome(attack)
    pid, logged, started = target.balancer_pid, target.log_bytes(), time.monotonic()
    health = HealthProbe(target.port, pid)
    try:
        outcome.observed = attack.run(target)
    except (BoundBroken, AssertionError) as broken:  # the latter of `wait_until`
        outcome.broken.append(str(broken))
    finally:
        time.sleep(_SETTLE_S)
        probe = health.end()
    outcome.wall_s = time.monotonic() - started
    outcome.rss_bytes = probe.peak_bytes - probe.before_bytes
    outcome.stall_s = probe.stall_s
    outcome.log_bytes = max(target.log_bytes() - logged, 0)
    outcome.broken += judge(outcome, stall_factor=target.stall_factor)
    if attack.keeps_process and target.balancer_pid != pid:
        outcome.broken.append("the balancer was restarted")
    if attack.keeps_process and probe.refused:
        outcome.broken.append(f"{probe.refused} health checks were not answered")
    if not target.is_served():
        outcome.broken.append("an honest request failed afterwards")
    return outcome
