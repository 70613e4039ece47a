"""`python -m worker`: one model on one device."""

from __future__ import annotations

import argparse
import logging
import os
import re
import secrets
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from configs.cli import EXIT_USAGE, HelpFormatter, add_config_options, settings_from
from configs.logs import configure_logging
from configs.paths import cache_dir, worker_address
from configs.settings import Model, Settings
from wire.curve import BadKey, WorkerKey, read_worker_key
from wire.messages import PROTOCOL, Hello
from worker.balancer_client import Link
from worker.batch_size import BUCKETS, Caps
from worker.calibration import measure
from worker.engine import DeviceLost, TaskError, UnsupportedModel
from worker.postprocessing import Renders
from worker.standby import Dismissed
from worker.startup import Fetched, fetch, stand_by
from worker.startup_times import in_words
from worker.step_loop import Loop, Refused
from worker.transport import DrainRequested

log = logging.getLogger("worker")

EXIT_CRASH = 1
#: The balancer was silent for `workers.orphan_after_s`.
EXIT_ORPHANED = 3

_DESCRIPTION = """\
A model-server process: loads one model on one device, pulls tasks from the balancer and steps them in one batch.

The controller starts workers by itself; by hand, one joins a balancer that runs with the same data directory:

    python -m worker --model digits --data-dir ./data

From another machine it joins over TCP, with the key file that `scripts/keys add-worker` made beside the balancer:

    python -m worker --model digits --join tcp://HOST:PORT --key-file FILE

SIGTERM or Ctrl-C drains it: it takes nothing more, hands back what runs between two steps, with its progress, and
exits. Where tasks cannot be moved it finishes them first; a second signal, or SIGUSR1, makes it hand them back too.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker", description=_DESCRIPTION, formatter_class=HelpFormatter)
    parser.add_argument("--model", default=argparse.SUPPRESS, help="name in the configuration; default: the first")
    parser.add_argument("--device", default="cpu:0", help="cpu:N, cuda:N or sim:N")
    parser.add_argument("--id", default=argparse.SUPPRESS, help="name of this worker; default: a new one")
    parser.add_argument(
        "--standby", action="store_true", help="load what needs no device, then wait for the controller to name one"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--connect", type=_socket, default=argparse.SUPPRESS, help="ipc address; default: the data directory's socket"
    )
    where.add_argument(
        "--join", type=_remote, metavar="tcp://HOST:PORT", default=argparse.SUPPRESS, help="balancer of another machine"
    )
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="key that --join shows and trusts"
    )
    add_config_options(parser)
    return parser


def _socket(text: str) -> str:
    if not text.startswith("ipc://"):
        raise argparse.ArgumentTypeError(f"{text} is no ipc:// address; over TCP it is --join and --key-file")
    return text


def _remote(text: str) -> str:
    if not re.fullmatch(r"tcp://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):[1-9][0-9]{0,4}", text):
        raise argparse.ArgumentTypeError(f"{text} is not tcp://HOST:PORT")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until drained. Returns the exit status: 0 drained, 1 crashed, 2 refused, 3 orphaned."""
    args = _parser().parse_args(argv)
    settings = settings_from(args)
    configure_logging(settings.log_level)
    model = getattr(args, "model", next(iter(settings.models)))
    if model not in settings.models:
        print(f"--model {model}: no such model; configured: {', '.join(settings.models)}", file=sys.stderr)
        return EXIT_USAGE
    name = getattr(args, "id", f"{model}-{secrets.token_hex(3)}")
    try:
        address, key = _balancer(args, settings)
    except BadKey as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    try:
        fetched = (stand_by if args.standby else fetch)(settings, model, name, args.device)
        return _serve(settings, model, name, address, key, fetched)
    except Dismissed as dismissal:
        log.info("exiting: %s", dismissal)
        return 0
    except Refused as refusal:
        log.error("the balancer refuses this worker: %s", refusal)
        return EXIT_USAGE
    except (UnsupportedModel, TaskError) as error:  # the second, where the model's own defaults do not go with it
        log.error("model %s cannot be served: %s", model, error)
        return EXIT_CRASH
    except DeviceLost as error:
        log.error("worker %s has lost its device and ends: %s", name, error)
        return EXIT_CRASH
    except Exception:
        log.exception("worker %s crashed", name)
        return EXIT_CRASH


def _balancer(args: argparse.Namespace, settings: Settings) -> tuple[str, WorkerKey | None]:
    """Where the balancer is, and the key for it where it is on another machine. Raises `BadKey`."""
    remote, file = getattr(args, "join", None), getattr(args, "key_file", None)
    if remote is None and file is None:
        return getattr(args, "connect", None) or worker_address(settings.data_dir), None
    if remote is None or file is None:
        raise BadKey("--join and --key-file go together: nothing travels over TCP without a key")
    return remote, read_worker_key(file)


def _serve(settings: Settings, model: str, name: str, address: str, key: WorkerKey | None, fetched: Fetched) -> int:
    engine, device, watch = fetched
    configured = settings.models[model]
    life = settings.workers
    link = Link(address, name, heartbeat_s=life.heartbeat_s, orphan_after_s=life.orphan_after_s, key=key)
    renders = Renders(link.send, threads=2 if device.startswith("cuda") else 1)
    most, caps = _caps(configured)

    def drain(signum: int, frame: object) -> None:
        del frame
        told = DrainRequested(f"signal {signal.Signals(signum).name}")
        # A signal of its own, because two equal ones that come close together arrive as one.
        for _ in range(2 if signum == signal.SIGUSR1 else 1):
            link.inject(told)

    engine.load()
    watch.lap("device_s")
    engine.warm_up()
    measure(engine, configured, caps, most, cache_dir(settings.data_dir))
    watch.lap("warm_up_s")
    hello = Hello(PROTOCOL, name, model, device, os.getpid(), engine_info=engine.info(), start=watch.times)
    loop = Loop(engine, configured, hello, caps, link, renders, settings.workers.drain_timeout_s)
    # Not before: a signal while it loads ends the process at once, there is nothing to drain.
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, drain)
    log.info("ready after %.1f s (%s)", watch.times.total_s, in_words(watch.times))
    loop.introduce()
    link.start(loop.beat)
    reason, crashed = "crashed", True
    try:
        reason, crashed = loop.run(), False
    except DeviceLost as error:
        reason = f"its device is lost: {error}"
        raise
    finally:
        renders.shutdown()
        link.close(reason, crashed=crashed)
    log.info("exiting: %s", reason)
    return EXIT_ORPHANED if link.orphaned else 0


def _caps(model: Model) -> tuple[int, Caps]:
    """The most tasks that a step may ever have, and what will know how many it should have."""
    fixed = model.max_batch_size != "auto"
    most = BUCKETS[-1] if model.max_batch_size == "auto" else model.max_batch_size
    return most, Caps(most, fixed=fixed, min_gain=model.batching.min_gain, max_step_s=model.batching.max_step_s)


def _leave(status: int) -> NoReturn:
    """End the process here: Python would first take torch apart, for seconds in which the device is still held."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    _leave(main())
