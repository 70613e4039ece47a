"""A controller instance into which violations are injected."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
from pathlib import Path

import msgspec
import psutil

from configs.paths import internal_token, keys_file
from controller.launchers.local import BALANCER
from loadbalancer.access.api_keys import KEY_PREFIX, KeyRing, fingerprint
from loadbalancer.access.key_files import write
from scripts.chaos_lib.fault_plan import Fault
from scripts.chaos_lib.profiles import OWNERS, Profile
from scripts.harness.agents import AgentMachine
from scripts.harness.instance import Instance
from scripts.harness.processes import free_port, is_alive
from scripts.harness.tcp_proxy import TcpProxy

#: The controller stops within ten seconds; the bound is larger because the machine may be busy.
_STOP_S = 60.0


class FaultyInstance(Instance):
    """Starts a server, injects violations and stops it."""

    def __init__(self, folder: Path, profile: Profile) -> None:
        """Write the API keys and start. `folder` must be empty."""
        self.tokens = {name: KEY_PREFIX + secrets.token_urlsafe(32) for name in OWNERS}
        keys = {name: msgspec.structs.replace(OWNERS[name], sha256=fingerprint(self.tokens[name])) for name in OWNERS}
        write(keys_file(folder), msgspec.to_builtins(KeyRing(keys)))
        self.token = internal_token(folder)
        #: True while the harness itself stops or starts the controller.
        self._restarting = False
        #: Machines on which a fault acts now.
        self._held: set[str] = set()
        config, port = profile.config(), free_port()
        if profile.machines:
            config["workers"] = config["workers"] | {"listen": f"tcp://127.0.0.1:{port}"}
        # Every process inherits the working directory, and is found by it.
        super().__init__(folder, config, cwd=folder.resolve())
        self.proxies = [TcpProxy(port).start() for _ in range(profile.machines)]
        names = [f"box-{number}" for number in range(profile.machines)]
        self.machines = [
            AgentMachine(self.folder / name, name, self.folder, proxy.address, cwd=self.folder)
            for name, proxy in zip(names, self.proxies, strict=True)
        ]

    def balancer_pid(self) -> int | None:
        record = self.records().get(BALANCER)
        return record.pid if record is not None and is_alive(record.pid) else None

    @property
    def has_crashed(self) -> bool:
        """Whether the controller has ended without a fault that ends it."""
        return not self._restarting and self.process.poll() is not None

    def ended_agents(self) -> list[str]:
        """Return the machines whose agents have ended without a fault."""
        return [each.name for each in self.machines if each.name not in self._held and each.process.poll() is not None]

    async def inject(self, fault: Fault) -> str:
        """Inject the fault, then resume a stopped process or restart the controller after `fault.duration_s`.

        Returns the name of the process, or an empty string if there was none.
        """
        if fault.target == "controller":
            return await self._inject_into_controller(fault)
        if fault.target in ("machine", "agent", "network"):
            return await self._inject_into_machine(fault)
        is_balancer = fault.target == "balancer"
        records = [record for name, record in self.records().items() if (name == BALANCER) == is_balancer]
        by_age = sorted((record.created, record.id, record.pid) for record in records if is_alive(record.pid))
        if not by_age:
            return ""
        _, name, pid = by_age[min(int(fault.position * len(by_age)), len(by_age) - 1)]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, fault.signum)
        if fault.signum == signal.SIGSTOP:
            await asyncio.sleep(fault.duration_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return name

    async def _inject_into_controller(self, fault: Fault) -> str:
        if self._restarting or self.has_crashed:
            return ""
        self._restarting = True
        try:
            self.process.send_signal(fault.signum)
            if fault.signum == signal.SIGSTOP:
                await asyncio.sleep(fault.duration_s)
                self.process.send_signal(signal.SIGCONT)
                return "controller"
            await asyncio.to_thread(self.process.wait, _STOP_S)
            if fault.signum == signal.SIGKILL:
                await asyncio.sleep(fault.duration_s)
            self.start()
        finally:
            self._restarting = False
        return "controller"

    async def _inject_into_machine(self, fault: Fault) -> str:
        """Kill, stop or cut off a machine, or break its connections; nothing if another fault holds it."""
        number = min(int(fault.position * len(self.machines)), len(self.machines) - 1)
        machine, proxy = self.machines[number], self.proxies[number]
        if machine.name in self._held:
            return ""
        self._held.add(machine.name)
        try:
            if fault.target == "network" and fault.signum == signal.SIGKILL:
                proxy.reset()
            elif fault.target == "network":
                proxy.cut()
                await asyncio.sleep(fault.duration_s)
                proxy.heal()
            elif fault.signum == signal.SIGKILL:
                machine.kill(workers=fault.target == "machine")
                await asyncio.sleep(fault.duration_s if fault.target == "machine" else 0.5)
                machine.start()
            else:
                stopped = machine.pause()
                await asyncio.sleep(fault.duration_s)
                machine.resume(stopped)
        finally:
            self._held.discard(machine.name)
        return machine.name

    async def stop(self) -> list[str]:
        """Stop the controller by SIGTERM. Return the processes that are left, after killing them."""
        self._restarting = True
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self.process.wait, _STOP_S)
        for machine, proxy in zip(self.machines, self.proxies, strict=True):
            await asyncio.to_thread(machine.stop, _STOP_S)
            proxy.stop()
        leftover = []
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                leftover.append(f"{' '.join(process.cmdline())[:120]} (process {process.pid})")
                process.kill()
        return leftover

    def _processes(self) -> list[psutil.Process]:
        """Return every live process that descends from a controller of this instance."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cwd() == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found
