"""Serving: what `python -m controller` does unless it is told another word."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence

from filelock import FileLock, Timeout
from rich.console import Console
from setproctitle import setproctitle

from configs.cli import EXIT_USAGE, HelpFormatter, add_config_options, add_server_options, settings_from
from configs.logs import configure
from configs.paths import internal_token, log_dir, run_dir
from configs.schema import Settings
from controller.brain import Brain, Model
from controller.gpus import Gpu, cpu_cores, list_gpus
from controller.launchers.local import BALANCER, LocalLauncher
from controller.loop import BalancerRefused, Controller
from controller.observe import Balancer
from controller.plan import device_slots
from controller.policies import POLICIES
from controller.replica import Decision, Limits
from controller.screen import Screen, log_to_terminal

log = logging.getLogger("controller")

_DESCRIPTION = """\
Serves generative models on every GPU of this machine, or on its CPU cores where it has none.

Starts a load balancer, one model-server process per device and, every `interval_s`, as many more or fewer of them as
the queue asks for. Without --config it serves the small built-in model "digits":

    python -m controller --min-workers 2

Settings come from the YAML file, over it from MUSTER_* variables (MUSTER_SERVER__PORT=9000), over both from here.
Ctrl-C, SIGTERM or a closed terminal stops everything within 10 seconds; a second signal stops it at once.
"""
#: What `max_workers: auto` means for a simulated model.
_SIM_WORKERS = 4


class Refused(Exception):
    """Cannot start as asked; the text says what to change."""


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
    settings = settings_from(_parser().parse_args(argv))
    configure(settings.log_level)
    console = Console()
    if sys.stderr.isatty():
        log_to_terminal(console if console.is_terminal else Console(stderr=True))
    setproctitle("muster controller")
    try:
        lock = FileLock(run_dir(settings.data_dir) / "controller.lock")
        log_dir(settings.data_dir)
    except OSError as error:
        print(f"cannot start: data_dir {settings.data_dir} cannot be used: {error}", file=sys.stderr)
        return EXIT_USAGE
    try:
        with lock.acquire(timeout=0):
            asyncio.run(_serve(settings, Screen(console)))
    except Timeout:
        where = settings.data_dir.resolve()
        print(f"another controller runs with --data-dir {where}; give this one its own", file=sys.stderr)
        return EXIT_USAGE
    except (Refused, BalancerRefused) as refusal:
        print(f"cannot start: {refusal}", file=sys.stderr)
        return EXIT_USAGE
    return 0


async def _serve(settings: Settings, screen: Screen) -> None:
    gpus = _gpus(settings)
    models = _models(settings, gpus)
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
    controller = Controller(settings, launcher, balancer, Brain(models), screen)

    stop, hurry = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(controller.run())

    def told() -> None:
        (hurry if stop.is_set() else stop).set()
        running.cancel()

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup means: go on without the terminal. SIGINT counts even where it came ignored: every background job of a
        # shell starts so, and can still be told to stop.
        if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(signum, told)
    try:
        await running
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    finally:
        await controller.shutdown(hurry)


def _balancer(settings: Settings) -> Balancer:
    """Raises `Refused` where the certificate by which it is to be known cannot be read."""
    server, token = settings.server, internal_token(settings.data_dir)
    try:
        return Balancer(server.host, server.port, token, server.tls_cert)
    except (OSError, ValueError) as error:
        raise Refused(f"server.tls_cert {server.tls_cert} cannot be read as a PEM certificate: {error}") from None


def _gpus(settings: Settings) -> list[Gpu]:
    gpus = [] if settings.devices.use == "cpu" else list_gpus()
    if settings.devices.use == "cuda" and not gpus:
        raise Refused("devices.use is cuda, but this machine shows no NVIDIA GPU; allowed: auto, cpu")
    return gpus


def _models(settings: Settings, gpus: Sequence[Gpu]) -> dict[str, Model]:
    """Every model with its bounds and the devices that its workers may have."""
    real = [name for name, model in settings.models.items() if model.engine != "sim"]
    least = sum(settings.scaling(name).min_workers for name in real)
    cores = cpu_cores() if settings.devices.cpu_slots == "auto" else settings.devices.cpu_slots
    slots = device_slots([gpu.index for gpu in gpus], cores, least)
    if least > (len(gpus) or cores):
        have = f"{len(gpus)} GPUs" if gpus else f"{cores} CPU slots"
        log.warning("%d workers at least are wanted, but there are only %s: some will share", least, have)
    limits = {
        name: _limits(settings, name, _SIM_WORKERS if name not in real else len(slots)) for name in settings.models
    }
    # There is no end of simulated accelerators: each model's workers find as many as they may be.
    simulated = [f"sim:{number}" for number in range(sum(limits[n].max_workers for n in limits if n not in real))]
    return {
        name: Model(
            (scaling := settings.scaling(name)),
            own,
            POLICIES[scaling.policy],
            slots if name in real else simulated,
            Decision(own.min_workers, f"min_workers is {own.min_workers}"),
        )
        for name, own in limits.items()
    }


def _limits(settings: Settings, model: str, devices: int) -> Limits:
    """The model's bounds on a machine with so many devices for it."""
    scaling, workers = settings.scaling(model), settings.workers
    most = max(devices, scaling.min_workers) if scaling.max_workers == "auto" else scaling.max_workers
    return Limits(scaling.min_workers, most, workers.start_timeout_s, workers.drain_timeout_s, workers.lost_after_s)


def _check_port(settings: Settings) -> None:
    """Find out before anything starts whether the port is free. Raises `Refused`."""
    host, port = settings.server.host, settings.server.port
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise Refused(f"server.port {port} on {host} cannot be had ({error.strerror}); try --port") from None
