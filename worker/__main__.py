"""`python -m worker`: one model on one device."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import secrets
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from configs.cli import EXIT_USAGE, HelpFormatter, add_config_options, path_argument, settings_from
from configs.files import describe_os_error
from configs.log_files import rotate_own_log
from configs.logs import CANNOT_START, configure_logging
from configs.open_files import too_few_open_files
from configs.paths import children_dir, run_dir, served_file, worker_address
from configs.section_base import HOST_AND_PORT
from configs.settings import Settings
from configs.streams import detach_standard_streams, drain_standard_streams
from configs.user_engine import interpreter_problems
from configs.worker_packages import link_packages
from wire.curve import BadKey, WorkerKey, read_agent_key, read_worker_key
from wire.messages import EXIT_ORPHANED, PROTOCOL, Hello
from worker.balancer_client import BalancerClient
from worker.engine import DeviceLost
from worker.offer import RoundTrips
from worker.postprocessing import PostProcessor
from worker.stack_traces import StallWatch, log_if_slow, trace_fatal_signals
from worker.standby import StandbyCancelled
from worker.startup import LoadedEngine, StartFailed, load, load_standby, prepare
from worker.step_loop import StepLoop, WorkerRejected

log = logging.getLogger("worker")

EXIT_CRASH = 1
#: The model cannot be loaded. The last line of the log says why.
EXIT_CANNOT_START = 4
_SLOW_CLOSE_S = 3.0

_DESCRIPTION = """\
A model-server process: loads one model on one device, takes tasks from the balancer and steps them in one batch.

The controller starts workers by itself; by hand, one joins a balancer that runs with the same data directory:

    python -m worker --model digits --data-dir ./data

From another machine it joins over TCP, with the key file that `scripts/keys add-worker` made beside the balancer:

    python -m worker --model digits --join tcp://HOST:PORT --key-file FILE

As the agent of another machine it loads nothing itself: it offers that machine's devices to the server, and starts
and stops workers there as the controller orders (key file: `scripts/keys add-worker --agent`):

    python -m worker --agent --join tcp://HOST:PORT --key-file FILE

SIGTERM or Ctrl-C drains it: it accepts no more tasks, hands the running ones back between two steps, with their
progress, and exits. Tasks that cannot be moved are finished first; a second signal, or SIGUSR1, hands them back too.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker", description=_DESCRIPTION, formatter_class=HelpFormatter)
    parser.add_argument("--model", default=argparse.SUPPRESS, help="name in the configuration; default: the first")
    parser.add_argument("--device", default="cpu:0", help="cpu:N, cuda:N or sim:N")
    parser.add_argument("--id", default=argparse.SUPPRESS, help="name of this worker; default: a new one")
    parser.add_argument(
        "--standby", action="store_true", help="load what needs no device, then wait for the controller to assign one"
    )
    parser.add_argument("--agent", action="store_true", help="run the workers of this machine for a server elsewhere")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--connect", type=_socket, default=argparse.SUPPRESS, help="ipc address; default: the data directory's socket"
    )
    where.add_argument(
        "--join", type=_remote, metavar="tcp://HOST:PORT", default=argparse.SUPPRESS, help="balancer of another machine"
    )
    parser.add_argument(
        "--key-file",
        type=path_argument,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="key that --join shows and trusts",
    )
    check = parser.add_argument_group("checking an engine of your own, without a server")
    check.add_argument(
        "--check-engine",
        nargs="?",
        const="",
        default=argparse.SUPPRESS,
        metavar="ENGINE",
        help="run package.module:Class, path/to/file.py:Class, or by default that of --model, report, and exit",
    )
    check.add_argument("--input", default=argparse.SUPPRESS, help="an item: JSON, or a file; default: the example()")
    add_config_options(parser)
    return parser


def _socket(text: str) -> str:
    if not text.startswith("ipc://"):
        raise argparse.ArgumentTypeError(f"{text} is not an ipc:// address; for TCP use --join and --key-file")
    return text


def _remote(text: str) -> str:
    if not re.fullmatch(f"tcp://{HOST_AND_PORT}", text):
        raise argparse.ArgumentTypeError(f"{text} is not tcp://HOST:PORT")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until drained. Returns the exit status: 0 drained, 1 crashed, 2 rejected, 3 orphaned, 4 cannot start."""
    detach_standard_streams()
    args = _parser().parse_args(argv)
    settings = settings_from(args, needs_models=not args.agent)  # the server sends an agent its models
    if hasattr(args, "check_engine"):
        return _check_engine(args, settings)
    if args.agent:
        return _run_agent(args, settings)
    model = getattr(args, "model", next(iter(settings.models)))
    name = getattr(args, "id", f"{model.replace('/', '-')}-{secrets.token_hex(3)}")
    as_json = settings.logging.format == "json"
    configure_logging(settings.log_level, as_json=as_json, program="worker", worker=name, model=model)
    rotate_own_log(settings.data_dir, settings.logging)
    trace_fatal_signals()
    if model not in settings.models:
        print(f"--model {model}: no such model; configured: {', '.join(settings.models)}", file=sys.stderr)
        return EXIT_USAGE
    try:
        address, key = _balancer(args, settings)
    except (BadKey, StartFailed) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    try:
        _raise_open_file_limit()
        _enter_environment(settings, model, key)
        loaded = (load_standby if args.standby else load)(settings, model, name, args.device)
        return _serve(settings, model, name, address, key, loaded)
    except StandbyCancelled as reason:
        log.info("exiting: %s", reason)
        return 0
    except WorkerRejected as error:
        log.error("the balancer rejects this worker: %s", error)
        return EXIT_USAGE
    except StartFailed as error:
        log.debug("the exception behind it", exc_info=error.__cause__)
        log.error("%s%s", CANNOT_START, error)
        return EXIT_CANNOT_START
    except DeviceLost as error:
        log.error("worker %s has lost its device and exits: %s", name, error)
        return EXIT_CRASH
    except Exception:
        log.exception("worker %s crashed", name)
        return EXIT_CRASH


def _raise_open_file_limit() -> None:
    """Raises `StartFailed` if too few files may be open."""
    if problem := too_few_open_files():
        raise StartFailed(problem)


def _run_agent(args: argparse.Namespace, settings: Settings) -> int:
    from worker.agent.agent import run_agent

    address, file = getattr(args, "join", None), getattr(args, "key_file", None)
    if address is None or file is None:
        print("--agent needs --join tcp://HOST:PORT and --key-file FILE", file=sys.stderr)
        return EXIT_USAGE
    configure_logging(settings.log_level, as_json=settings.logging.format == "json", program="agent")
    rotate_own_log(settings.data_dir, settings.logging)
    if problem := too_few_open_files():
        print(f"cannot start: {problem}", file=sys.stderr)
        return EXIT_USAGE
    try:
        return run_agent(settings, address, read_agent_key(file))
    except BadKey as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE


def _check_engine(args: argparse.Namespace, settings: Settings) -> int:
    """Print a report about the engine. Return 0 if nothing is wrong with it, 1 otherwise."""
    from worker.engine_check import check_engine, engine_to_check

    configure_logging("error" if settings.log_level == "info" else settings.log_level)
    try:
        model = engine_to_check(settings, args.check_engine, getattr(args, "model", None))
    except ValueError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    if model.python is not None and "worker.bootstrap" not in sys.orig_argv:
        problems = list(interpreter_problems(model.python))
        if not problems:
            _continue_in(model.python, settings)
        print("\n".join(problems), file=sys.stderr)
        return EXIT_CRASH
    report = check_engine(model, args.device, getattr(args, "input", None))
    print(report)
    return 1 if report.problems else 0


def _enter_environment(settings: Settings, model: str, key: WorkerKey | None) -> None:
    """Continue in the interpreter of the model, if this worker joins from another machine by itself.

    A launcher on this machine has chosen the interpreter already. Raises `StartFailed`.
    """
    python = settings.models[model].python
    if key is None or python is None or "worker.bootstrap" in sys.orig_argv:
        return
    try:
        _continue_in(python, settings)
    except OSError as error:
        raise StartFailed(f"models.{model}.python {python}: {error.strerror}") from None


def _continue_in(python: Path, settings: Settings) -> NoReturn:
    """Run this command in the environment of the engine."""
    packages = link_packages(Path(__file__).parents[1], run_dir(settings.data_dir) / "python")
    path = os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")]))
    sys.stdout.flush()
    os.execve(  # noqa: S606  # the operator names it in the configuration
        python, [str(python), "-m", "worker.bootstrap", *sys.argv[1:]], os.environ | {"PYTHONPATH": path}
    )


def _balancer(args: argparse.Namespace, settings: Settings) -> tuple[str, WorkerKey | None]:
    """Return the balancer's address, and the key if it is on another machine.

    Raises `BadKey`, and `StartFailed` for a data directory that cannot be used.
    """
    remote, file = getattr(args, "join", None), getattr(args, "key_file", None)
    if remote is None and file is None:
        try:
            return getattr(args, "connect", None) or worker_address(settings.data_dir), None
        except OSError as error:
            raise StartFailed(f"data_dir {settings.data_dir} cannot be used: {describe_os_error(error)}") from None
    if remote is None or file is None:
        raise BadKey("--join and --key-file go together: TCP connections need a key")
    return remote, read_worker_key(file)


def _serve(settings: Settings, model: str, name: str, address: str, key: WorkerKey | None, loaded: LoadedEngine) -> int:
    engine, device, stopwatch = loaded
    workers, round_trips = settings.workers, RoundTrips()
    client = BalancerClient(
        address,
        name,
        heartbeat_s=workers.heartbeat_s,
        orphan_after_s=workers.orphan_after_s,
        key=key,
        round_trips=round_trips,
    )
    threads = 2 if device.startswith("cuda") else 1
    post = PostProcessor(
        client.send,
        threads,
        int(workers.max_result_bytes),
        send_later=client.send_later,
        call_at=client.call_at,
        round_trips=round_trips,
    )
    configured, sizer = prepare(settings, model, loaded)
    hello = Hello(PROTOCOL, name, model, device, os.getpid(), engine_info=engine.info(), start=stopwatch.times)
    stalls = StallWatch(workers.stuck_min_s, workers.stuck_factor)
    loop = StepLoop(engine, configured, hello, sizer, client, post, workers.drain_timeout_s, round_trips, stalls)
    # Only now: a signal during loading ends the process at once, because there is nothing to drain.
    _drain_on_signals(client, workers.drain_grace_s)
    log.info("ready after %.1f s (%s)", stopwatch.times.total_s, stopwatch)
    with contextlib.suppress(OSError):  # the disk is full, or the controller is on another machine
        served_file(children_dir(settings.data_dir), name).touch()
    loop.send_hello()
    client.start(loop.heartbeat)
    reason, crashed = "crashed", True
    try:
        reason, crashed = loop.run(), False
    except DeviceLost as error:
        reason = f"its device is lost: {error}"
        raise
    finally:
        post.shutdown()
        client.close(reason, crashed=crashed)
    log.info("exiting: %s", reason)
    try:
        with log_if_slow(_SLOW_CLOSE_S, "the engine is not closed yet"):
            engine.close()
    except (Exception, SystemExit):
        log.exception("the engine could not be closed")
    return EXIT_ORPHANED if client.orphaned else 0


def _drain_on_signals(client: BalancerClient, grace_s: float) -> None:
    """A service manager sends SIGTERM to every process of a server at once, in any order.

    So the worker waits for `grace_s` for the balancer to say that it is stopping: it then still needs its workers.
    """

    def drain(signum: int, frame: object) -> None:
        del frame
        reason = f"signal {signal.Signals(signum).name}"
        if signum == signal.SIGUSR1:
            # It counts twice: two equal signals that come close together arrive as one.
            client.request_drain(reason)
            client.request_drain(reason)
        else:
            client.request_drain(reason, grace_s)

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, drain)


def _exit(status: int) -> NoReturn:
    """Exit without Python's shutdown, which takes torch seconds in which the device is still held."""
    logging.shutdown()
    sys.stdout.flush()
    drain_standard_streams()
    os._exit(status)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it while user code runs, and is no exception in it
    _exit(main())
