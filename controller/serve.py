"""Serving: what `python -m controller` does unless it is told another word."""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Sequence

from filelock import FileLock, Timeout
from rich.console import Console
from setproctitle import setproctitle

from configs.cli import EXIT_USAGE, HelpFormatter, add_config_options, add_server_options, config_reader, settings_from
from configs.logs import configure_logging
from configs.paths import internal_token, log_dir, run_dir
from configs.settings import Settings
from controller.autoscaler.autoscaler import Brain, Model
from controller.balancer_client import BalancerHttpClient, url_of
from controller.launchers.local import BALANCER, LocalLauncher
from controller.runtime.balancer_supervisor import BalancerStartupError
from controller.runtime.console import ServerConsole, log_to_console
from controller.runtime.control_loop import ControlLoop
from controller.runtime.control_plane import ControlPlaneAgent
from controller.runtime.device_monitor import load_measured_memory, monitor_devices
from controller.runtime.gpus import Gpu, cpu_cores, list_gpus
from controller.runtime.inventory import (
    Machine,
    SetupError,
    build_machine,
    build_models,
    build_pool,
    oversized_models,
    unplaced_models,
)
from controller.runtime.signals import Terminal, install_signal_handlers
from controller.types import Device

log = logging.getLogger("controller")

_DESCRIPTION = """\
Serves generative models on every GPU of this machine, or on its CPU cores where it has none.

Starts a load balancer, one model-server process per device and, every `interval_s`, as many more or fewer of them as
the queue asks for. Without --config it serves the small built-in model "digits":

    python -m controller --min-workers 2

Settings come from the YAML file, over it from MUSTER_* variables (MUSTER_SERVER__PORT=9000), over both from here.
Ctrl-C, SIGTERM or a closed terminal stops everything within 10 seconds; a second signal stops it at once. SIGHUP reads
the configuration again: what can change while serving does so, and the log names the rest.

A word in the place of options does something else, most of it with a server that runs (WORD --help says more):
status, scale, pause, resume, reload; simulate, tune.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m controller", description=_DESCRIPTION, formatter_class=HelpFormatter
    )
    parser.add_argument(
        "--min-workers", type=int, metavar="N", default=argparse.SUPPRESS, help="never fewer workers per model"
    )
    parser.add_argument(
        "--max-workers", type=int, metavar="N", default=argparse.SUPPRESS, help="never more workers per model"
    )
    add_server_options(parser)
    add_config_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop. Returns the exit status: 0 stopped, 2 refused to start."""
    terminal = Terminal()
    args = _parser().parse_args(argv)
    settings = settings_from(args)
    configure_logging(settings.log_level)
    console = Console()
    if sys.stderr.isatty():
        log_to_console(console if console.is_terminal else Console(stderr=True))
    setproctitle("muster controller")
    try:
        lock = FileLock(run_dir(settings.data_dir) / "controller.lock")
        log_dir(settings.data_dir)
    except OSError as error:
        print(f"cannot start: data_dir {settings.data_dir} cannot be used: {error}", file=sys.stderr)
        return EXIT_USAGE
    try:
        with lock.acquire(timeout=0):
            asyncio.run(_serve(settings, config_reader(args), ServerConsole(console), terminal))
    except Timeout:
        where = settings.data_dir.resolve()
        print(f"another controller runs with --data-dir {where}; give this one its own", file=sys.stderr)
        return EXIT_USAGE
    except (SetupError, BalancerStartupError) as refusal:
        print(f"cannot start: {refusal}", file=sys.stderr)
        return EXIT_USAGE
    return 0


async def _serve(settings: Settings, read: Callable[[], Settings], screen: ServerConsole, terminal: Terminal) -> None:
    gpus = _gpus(settings)
    devices = [Device(gpu.device, gpu.total_bytes) for gpu in gpus]

    def models_of_these(fresh: Settings) -> dict[str, Model]:
        return _models(fresh, build_machine(fresh, devices, cpu_cores()))

    machine = build_machine(settings, devices, cpu_cores())
    models = _models(settings, machine)
    launcher = LocalLauncher(settings)
    adopted, outdated = launcher.prepare()
    if adopted:
        screen.line(f"adopting {', '.join(child.id for child in adopted)}, left by an earlier controller")
    if outdated:
        screen.line("they run with another configuration: each is told to finish and is replaced")
    if not any(child.id == BALANCER for child in adopted):
        _check_port(settings)
    slots = sorted({slot for state in models.values() for slot in state.slots})
    screen.devices(slots, [str(gpu) for gpu in gpus])
    screen.line(f"models: {', '.join(settings.models)}; logs: {log_dir(settings.data_dir)}")
    balancer = _balancer(settings)
    pool = build_pool(settings, machine, load_measured_memory(settings.data_dir))
    pool.occupied = {child.device for child in adopted}
    brain = Brain(models, pool)
    clerk = ControlPlaneAgent(settings, brain, balancer, launcher, read, models_of_these)
    controller = ControlLoop(launcher, balancer, brain, clerk, screen, {gpu.device: gpu.name for gpu in gpus})

    stop, hurry = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(controller.run())

    def told() -> None:
        (hurry if stop.is_set() else stop).set()
        running.cancel()

    install_signal_handlers(terminal, told, controller.reload_soon)
    try:
        async with monitor_devices(pool, gpus, settings.data_dir):
            await running
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    finally:
        await controller.shutdown(hurry)


def _balancer(settings: Settings) -> BalancerHttpClient:
    """Raises `SetupError` where the certificate by which it is to be known cannot be read."""
    server, token = settings.server, internal_token(settings.data_dir)
    try:
        return BalancerHttpClient(
            url_of(server.host, server.port, tls=server.tls_cert is not None), token, server.tls_cert
        )
    except (OSError, ValueError) as error:
        raise SetupError(f"server.tls_cert {server.tls_cert} cannot be read as a PEM certificate: {error}") from None


def _gpus(settings: Settings) -> list[Gpu]:
    gpus = [] if settings.devices.use == "cpu" else list_gpus()
    if settings.devices.use == "cuda" and not gpus:
        raise SetupError("devices.use is cuda, but this machine shows no NVIDIA GPU; allowed: auto, cpu")
    return gpus


def _models(settings: Settings, machine: Machine) -> dict[str, Model]:
    """Every model with its place. Raises `SetupError` where one has none at all."""
    models = build_models(settings, machine)
    if problems := oversized_models(models, machine):
        raise SetupError("; ".join(problems))
    if waiting := unplaced_models(models, machine, share=settings.devices.share):
        log.warning("there is not enough GPU memory for all min_workers: %s will wait", ", ".join(waiting))
    real = [name for name, model in settings.models.items() if model.engine != "sim"]
    least, places = sum(models[name].limits.min_workers for name in real), len(machine.gpus) or machine.cores
    if least > places:
        have = f"{places} GPUs" if machine.gpus else f"{places} CPU slots"
        log.warning("%d workers at least are wanted, but there are only %s: some will share", least, have)
    return models


def _check_port(settings: Settings) -> None:
    """Find out before anything starts whether the port is free. Raises `SetupError`."""
    host, port = settings.server.host, settings.server.port
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise SetupError(f"server.port {port} on {host} cannot be had ({error.strerror}); try --port") from None
