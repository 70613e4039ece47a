"""Runs the server: the default of `python -m controller`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import functools
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from setproctitle import setproctitle

from configs.addresses import bind_all, listen_addresses
from configs.cli import (
    EXIT_USAGE,
    HelpFormatter,
    add_config_options,
    add_server_options,
    config_reader,
    limit_warnings,
    settings_from,
)
from configs.data_dir import DataDirCheck
from configs.files import describe_os_error
from configs.log_files import rotate_own_log
from configs.logs import configure_logging
from configs.open_files import too_few_open_files
from configs.paths import internal_token, log_dir, run_dir, worker_address
from configs.settings import Settings
from configs.streams import detach_standard_streams
from configs.text import closest
from controller.autoscaler.autoscaler import Autoscaler
from controller.autoscaler.model_state import ModelState
from controller.balancer_client import BalancerHttpClient, url_of
from controller.launchers.local import BALANCER, LocalLauncher
from controller.launchers.machines import MachinesLauncher
from controller.runtime.balancer_supervisor import BalancerStartupError
from controller.runtime.console import ServerConsole, log_to_console
from controller.runtime.control_loop import ControlLoop
from controller.runtime.control_plane import ControlPlaneAgent
from controller.runtime.device_monitor import load_measured_memory, monitor_devices
from controller.runtime.inventory import (
    HostDevices,
    build_host_devices,
    build_models,
    build_pool,
    join_time_s,
    max_starting,
    memory_shortage,
    oversized_models,
    starved_models,
    unplaced_models,
)
from controller.runtime.signals import Terminal, install_signal_handlers
from controller.runtime.state_file import StateFile
from controller.types import Device
from host.resources import available_memory, cpu_cores
from host.types import SetupError, WorkerProcess

if TYPE_CHECKING:
    from rich.console import Console

    from controller.launchers.ray.launcher import RayLauncher
    from host.gpus import Gpu

log = logging.getLogger("controller")

_DESCRIPTION = """\
Serves generative models on every GPU of this machine, or on its CPU cores if it has none.

Starts a load balancer and one worker process per device. Every `interval_s` it adapts the number of workers to the
load. Without --config it serves the small built-in model "digits":

    python -m controller --min-workers 2

With --launcher ray, workers run on the nodes of a Ray cluster (docs/ray.md).

Settings come from the YAML file. MUSTER_* variables (MUSTER_SERVER__PORT=9000) override it, and options override both.
Ctrl-C, SIGTERM or a closed terminal stops everything within 10 seconds; a second signal, or SIGQUIT, stops it at
once. SIGHUP reads the configuration again: what can change while serving does so, and the log names the rest.

A command in the place of options does something else, mostly with a running server (COMMAND --help says more):
status, scale, pause, resume, reload, drain, restart; simulate, tune.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m controller", description=_DESCRIPTION, formatter_class=HelpFormatter
    )
    parser.add_argument(
        "--min-workers", type=int, metavar="N", default=argparse.SUPPRESS, help="minimum number of workers per model"
    )
    parser.add_argument(
        "--max-workers", type=int, metavar="N", default=argparse.SUPPRESS, help="maximum number of workers per model"
    )
    parser.add_argument(
        "--launcher", choices=("local", "ray"), default=argparse.SUPPRESS, help="what starts workers (launcher)"
    )
    parser.add_argument(
        "--ray-address", metavar="HOST:PORT", default=argparse.SUPPRESS, help="Ray cluster, or auto (ray.address)"
    )
    add_server_options(parser)
    add_config_options(parser)
    return parser


def _arguments(argv: Sequence[str] | None, commands: Collection[str]) -> argparse.Namespace:
    """Parse the options. A word among them is a command in a wrong place, or a wrong one."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    command = next((word for word in rest if word in commands), None)
    if command is not None:
        parser.error(f"a command comes before its options: python -m controller {command} ...")
    if rest and not rest[0].startswith("-"):
        near = closest(rest[0], commands)
        parser.error(f"unknown command: {rest[0]}" + (f"; did you mean {near}?" if near else ""))
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def main(argv: Sequence[str] | None = None, commands: Collection[str] = ()) -> int:
    """Serve until stopped by a signal. Return the exit status: 0 stopped, 2 cannot start.

    `commands` are the words that the first one could have been.
    """
    terminal = Terminal()
    detach_standard_streams()
    args = _arguments(argv, commands)
    settings = settings_from(args)
    as_json = settings.logging.format == "json"
    configure_logging(settings.log_level, multiline=True, as_json=as_json, program="controller")
    rotate_own_log(settings.data_dir, settings.logging)
    for text in limit_warnings(args):
        log.warning("%s", text)
    if problem := too_few_open_files():
        print(f"cannot start: {problem}", file=sys.stderr)
        return EXIT_USAGE
    console = ServerConsole(_terminal_console())
    setproctitle("muster controller")
    try:
        lock = FileLock(run_dir(settings.data_dir) / "controller.lock")
        log_dir(settings.data_dir)
        worker_address(settings.data_dir)
        lock.acquire(timeout=0)
    except Timeout:
        folder = settings.data_dir.resolve()
        print(f"another controller runs with --data-dir {folder}; give this one its own", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        print(f"cannot start: data_dir {settings.data_dir} cannot be used: {describe_os_error(error)}", file=sys.stderr)
        return EXIT_USAGE
    try:
        with lock:
            asyncio.run(_allocate(settings, functools.partial(_read_again, args), console, terminal))
    except (SetupError, BalancerStartupError) as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return EXIT_USAGE
    return 0


def _read_again(args: argparse.Namespace) -> Settings:
    """Raises `ConfigError`."""
    settings = config_reader(args)()
    for text in limit_warnings(args):
        log.warning("%s", text)
    return settings


def _terminal_console() -> Console | None:
    """Return a console for the terminal, through which log lines go, too; None without a terminal."""
    if not (sys.stdout.isatty() or sys.stderr.isatty()):
        return None
    from rich.console import Console

    console = Console()
    if sys.stderr.isatty():
        log_to_console(console if console.is_terminal else Console(stderr=True))
    return console


async def _allocate(
    settings: Settings, read_settings: Callable[[], Settings], console: ServerConsole, terminal: Terminal
) -> None:
    cluster = await _join_cluster(settings, console) if settings.launcher == "ray" else None
    gpus = [] if cluster is not None else _gpus(settings)
    devices = [Device(gpu.device, gpu.total_bytes) for gpu in gpus]
    machine = build_host_devices(settings, devices, cpu_cores(), awaits_machines=join_time_s(settings) > 0)
    models = _models(settings, machine)
    try:
        data_dir = DataDirCheck(settings.data_dir)
        token = internal_token(settings.data_dir)  # first: without it nothing that is started could be reached
        launcher = LocalLauncher(settings)
        adopted = _adopt_processes(settings, launcher, console)
    except OSError as error:
        raise SetupError(f"data_dir {settings.data_dir} cannot be used: {describe_os_error(error)}") from None
    if cluster is None:
        slots = sorted({slot for model in models.values() for slot in model.slots})
        console.devices(slots, [str(gpu) for gpu in gpus])
    console.line(f"models: {', '.join(settings.models)}; logs: {log_dir(settings.data_dir)}")
    balancer = _balancer(settings, token)
    measured = load_measured_memory(settings.data_dir)
    pool = build_pool(settings, machine, measured, occupied={child.device for child in adopted})
    autoscaler = Autoscaler(models, pool)
    machines = MachinesLauncher(launcher, settings, cluster=cluster)
    control_plane = ControlPlaneAgent(
        settings,
        autoscaler,
        balancer,
        machines,
        StateFile(run_dir(settings.data_dir)),
        read_settings=read_settings,
        build_models=lambda fresh, machines, awaits: _models(
            fresh, build_host_devices(fresh, devices, cpu_cores(), machines, awaits_machines=awaits)
        ),
        device_names={gpu.device: gpu.name for gpu in gpus},
    )
    starting = max_starting(settings, machine)
    loop = ControlLoop(launcher, balancer, autoscaler, control_plane, console, starting, data_dir, machines)
    await _run_until_stopped(loop, terminal, monitor_devices(pool, gpus, settings.data_dir))


async def _run_until_stopped(
    loop: ControlLoop, terminal: Terminal, monitor: contextlib.AbstractAsyncContextManager[None]
) -> None:
    stop, immediate = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(loop.run())

    def on_stop() -> None:
        (immediate if stop.is_set() else stop).set()
        running.cancel()

    install_signal_handlers(terminal, on_stop, loop.request_reload)
    try:
        async with monitor:
            await running
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    finally:
        await loop.shutdown(immediate)


async def _join_cluster(settings: Settings, console: ServerConsole) -> RayLauncher:
    """Connect to the Ray cluster. Raises `SetupError`."""
    from controller.launchers.ray.setup import check_settings, ray_launcher, until_joined

    check_settings(settings)
    console.line(f"joining the Ray cluster ({settings.ray.address}) ...")
    try:
        cluster = ray_launcher(settings, os.environ)
    except OSError as error:
        raise SetupError(f"data_dir {settings.data_dir} cannot be used: {describe_os_error(error)}") from None
    await until_joined(cluster)
    for machine in cluster.machines(time.monotonic()):
        console.line(str(machine))
    return cluster


def _adopt_processes(settings: Settings, launcher: LocalLauncher, console: ServerConsole) -> list[WorkerProcess]:
    """Adopt the processes of an earlier controller. Raises `SetupError` if the port is taken by another program."""
    adopted, outdated = launcher.prepare()
    if adopted:
        console.line(f"adopting {', '.join(child.id for child in adopted)}, left by an earlier controller")
    if outdated:
        console.line("their configuration differs: each is drained and replaced")
    if not any(child.id == BALANCER for child in adopted):
        _check_port(settings)
    return adopted


def _balancer(settings: Settings, token: str) -> BalancerHttpClient:
    """Raises `SetupError` if the server's certificate cannot be read."""
    server = settings.server
    try:
        url = url_of(server.host, server.port, tls=server.tls_cert is not None)
        return BalancerHttpClient(url, token, server.tls_cert)
    except (OSError, ValueError) as error:
        raise SetupError(f"server.tls_cert {server.tls_cert} cannot be read as a PEM certificate: {error}") from None


def _gpus(settings: Settings) -> list[Gpu]:
    gpus: list[Gpu] = []
    if settings.devices.use != "cpu" and any(model.engine != "sim" for model in settings.models.values()):
        from host.gpus import list_gpus

        gpus = list_gpus()
    if settings.devices.use == "cuda" and not gpus:
        raise SetupError("devices.use is cuda, but this machine shows no NVIDIA GPU; allowed: auto, cpu")
    return gpus


def _models(settings: Settings, machine: HostDevices) -> dict[str, ModelState]:
    """Build all models. Raises `SetupError` if a worker of one fits on no device."""
    models = build_models(settings, machine)
    if problems := oversized_models(models, machine):
        # Another machine may join with a larger GPU.
        if settings.workers.listen is None:
            raise SetupError("; ".join(problems))
        log.warning("%s; or a machine with a larger GPU joins", "; ".join(problems))
    if unplaced := unplaced_models(models, machine, share=settings.devices.share):
        log.warning("the GPU memory does not suffice for all min_workers: %s must wait", ", ".join(unplaced))
    if machine.machines or machine.remote_only:
        return models
    real = [name for name, model in settings.models.items() if model.engine != "sim"]
    required, places = sum(models[name].limits.min_workers for name in real), len(machine.gpus) or machine.cores
    if required > places:
        available = f"{places} GPUs" if machine.gpus else f"{places} CPU slots"
        share_s = settings.workers.share_after_s
        rest = f"the others wait {share_s:g} s for machines to join" if machine.awaits_machines else "some will share"
        log.warning("min_workers require %d workers, but there are only %s: %s", required, available, rest)
    if starved := starved_models({name: models[name] for name in real}, machine):
        text = "min_workers of the other models take all %s CPU slots, so that no worker of %s can start"
        log.warning(f"{text}: lower them, or raise devices.cpu_slots", places, ", ".join(starved))
    if shortage := memory_shortage(required, available_memory()):
        log.warning("%s", shortage)
    return models


def _check_port(settings: Settings) -> None:
    """Raises `SetupError` if the port is not free. Called before any process starts."""
    host, port = settings.server.host, settings.server.port
    try:
        for listener in bind_all(listen_addresses(host, port), backlog=1):
            listener.close()
    except socket.gaierror as error:
        raise SetupError(f"server.host {host!r} cannot be resolved: {error.strerror}; give an address") from None
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise SetupError(f"server.host {host} is not an address of this machine; try --host") from None
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SetupError(f"server.port {port} on {host} is not available ({reason}); try --port") from None
