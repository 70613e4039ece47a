"""Measures the balancer while it is attacked: memory, answers of `/healthz`, size of the logs."""

from __future__ import annotations

import http.client
import threading
import time

from scripts.attack_lib.attack import Attack, BoundBroken, Outcome, judge
from scripts.attack_lib.target import Target, rss_bytes

_PROBE_EVERY_S = 0.02
#: Growth of the logs that a server has by itself in the time of an attack.
_SETTLE_S = 0.3


class HealthProbe:
    """Asks for `/healthz` on new connections, and samples the memory of the balancer."""

    def __init__(self, port: int, pid: int | None) -> None:
        self._port, self._pid = port, pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.stall_s = 0.0
        self.refused = 0
        self.peak_bytes = self.rss_bytes()

    def rss_bytes(self) -> int:
        return rss_bytes(self._pid)

    def __enter__(self) -> HealthProbe:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_PROBE_EVERY_S):
            started = time.monotonic()
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
                connection.request("GET", "/healthz")
                if connection.getresponse().status != 200:
                    self.refused += 1
                connection.close()
            except OSError:
                self.refused += 1
            self.stall_s = max(self.stall_s, time.monotonic() - started)
            self.peak_bytes = max(self.peak_bytes, self.rss_bytes())


def attack_single(attack: Attack, target: Target) -> Outcome:
    """Run the attack and judge it."""
    outcome = Outcome(attack)
    pid, logged, started = target.balancer_pid, target.log_bytes(), time.monotonic()
    with HealthProbe(target.port, pid) as probe:
        before = probe.rss_bytes()
        try:
            outcome.observed = attack.run(target)
        except (BoundBroken, AssertionError) as broken:  # the latter of `wait_until`
            outcome.broken.append(str(broken))
        time.sleep(_SETTLE_S)
    outcome.wall_s = time.monotonic() - started
    outcome.rss_bytes = max(probe.peak_bytes - before, 0)
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
