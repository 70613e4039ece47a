"""`scripts/keys`: creates, lists and revokes API keys and the keys of TCP workers.

It changes files only. A running balancer reloads them within a second.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import ipaddress
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from filelock import FileLock

from configs.cli import EXIT_USAGE, HelpFormatter, add_config_options, path_argument, settings_from
from configs.devices import is_machine_name
from configs.files import describe_os_error
from configs.paths import curve_dir, keys_file, keys_required_file
from configs.settings import Settings
from configs.streams import discard_output
from loadbalancer.access.api_keys import (
    DEFAULT_SCOPES,
    KEY_NAME,
    KEY_PREFIX,
    SCOPES,
    ApiKey,
    KeyRing,
    fingerprint,
    parse_ring,
)
from loadbalancer.access.key_enforcement import is_recorded, record_keys_in_force
from loadbalancer.access.key_files import InvalidFile, create, exists, read, write
from loadbalancer.access.startup_checks import ALLOWED_WORKERS, load_server_keys, parse_workers
from wire.curve import AgentKey, AllowedWorker, AllowedWorkers, WorkerKey, new_pair

_DESCRIPTION = """\
Manage API keys, and the keys of workers on other machines. Only a hash of an API key is stored, so the key is shown
only once.

    scripts/keys add alice --weight 2 --requests-per-minute 60
    scripts/keys add grafana --scope admin
    scripts/keys add-worker gpu-box worker.key
    scripts/keys add-worker --agent gpu-box box.key
    scripts/keys list
    scripts/keys revoke alice
    scripts/keys disable

From the first API key on, every request needs a key. This stays so until `disable`, even if all keys are revoked.
"""


#: Only the agent itself is stopped by a restart after a crash: its workers run on, and the next agent adopts them.
_AGENT_UNIT = """\
[Unit]
Description=Muster, agent of this machine
Wants=network-online.target
After=network-online.target nvidia-persistenced.service

[Service]
Type=exec
User=muster
WorkingDirectory=/opt/muster
ExecStart=/opt/muster/.venv/bin/python -m worker --agent --join ADDRESS --key-file /etc/muster/box.key \\
  --data-dir /var/lib/muster/data
KillMode=process
TimeoutStopSec=90
Restart=always
RestartSec=2
RestartPreventExitStatus=2
LimitNOFILE=65536
StateDirectory=muster
StateDirectoryMode=0700
UMask=0077
NoNewPrivileges=yes

[Install]
WantedBy=multi-user.target
"""


class UsageError(Exception):
    """The command cannot be executed. The message gives the reason."""


def main(argv: Sequence[str] | None = None) -> int:
    """Execute the command. Return the exit status: 0 for success, 2 for an error."""
    args = _parser().parse_args(argv)
    settings = settings_from(args)
    try:
        match args.verb:
            case "add":
                _add(settings, args)
            case "revoke":
                _revoke(settings, args.name)
            case "disable":
                _disable(settings)
            case "add-worker":
                _add_worker(settings, args.name, args.file, agent=args.agent)
            case "revoke-worker":
                _revoke_worker(settings, args.name)
            case _:
                _list(settings)
    except (UsageError, InvalidFile) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except msgspec.ValidationError as error:  # the file does not allow this name or number
        print(f"rejected: {error}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        print(describe_os_error(error), file=sys.stderr)
        return EXIT_USAGE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/keys", description=_DESCRIPTION, formatter_class=HelpFormatter)
    add_config_options(parser)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add = verbs.add_parser("add", help="create an API key and show it", formatter_class=HelpFormatter)
    add.add_argument("name", help="owner in logs, errors and jobs; a name that was used before owns its earlier jobs")
    add.add_argument("--scope", action="append", choices=SCOPES, help="can be repeated; default: all but admin")
    add.add_argument("--weight", type=float, default=1.0, help="share of worker time relative to other keys")
    add.add_argument("--requests-per-minute", type=int, metavar="N", help="maximum generation requests per minute")
    add.add_argument("--max-concurrent", type=int, metavar="N", help="maximum generation requests at once")
    add.add_argument(
        "--tokens-per-minute", type=int, metavar="N", help="maximum tokens of texts and prompts per minute"
    )
    verbs.add_parser("list", help="list all keys, without secrets")
    verbs.add_parser("revoke", help="revoke an API key").add_argument("name")
    verbs.add_parser("disable", help="serve requests without a key, from the next start on")
    worker = verbs.add_parser("add-worker", help="allow a worker on another machine to join (workers.listen)")
    worker.add_argument("name", help="name of the worker's key, or of the machine")
    worker.add_argument(
        "--agent",
        action="store_true",
        help="for the agent of a machine, which starts its workers; print its unit",
    )
    worker.add_argument(
        "file", type=path_argument, help="file for the worker's secret; copy it to the worker's machine"
    )
    verbs.add_parser("revoke-worker", help="revoke a worker's key").add_argument("name")
    return parser


def _add(settings: Settings, args: argparse.Namespace) -> None:
    token = KEY_PREFIX + secrets.token_urlsafe(32)
    scopes = tuple(dict.fromkeys(args.scope)) if args.scope else DEFAULT_SCOPES
    limits = args.requests_per_minute, args.max_concurrent
    key = ApiKey(fingerprint(token), scopes, args.weight, *limits, _today(), args.tokens_per_minute)
    _check_name(args.name)
    # Before anything changes: the record of the first key closes the server.
    _check_options(args.name, key)
    with _api_keys(settings) as keys:
        if args.name in keys:
            raise UsageError(f"a key named {args.name} exists already; revoke it first, or choose another name")
        keys[args.name] = key
        record_keys_in_force(settings.data_dir)
    print(f"The key of {args.name}, shown only once:", file=sys.stderr)
    try:
        _show(token)
    except OSError as error:  # nobody has seen it
        with _api_keys(settings) as keys:
            keys.pop(args.name, None)
        raise UsageError(f"the key cannot be shown, and was removed again: {error.strerror}") from None


def _check_name(name: str) -> None:
    if not re.fullmatch(KEY_NAME, name):
        raise UsageError(
            f"the name {name!r} is not allowed: it has 1 to 63 letters (a to z, A to Z), digits, dots, hyphens and "
            "underscores, and begins with a letter or digit"
        )


def _check_options(name: str, key: ApiKey) -> None:
    try:
        parse_ring({"keys": {name: msgspec.to_builtins(key)}})
    except msgspec.ValidationError as error:
        field = re.search(r"\.(\w+)`$", str(error))
        if field is None:
            raise
        option, rule = field[1].replace("_", "-"), str(error).split(" - at ")[0].replace("`", "")
        raise UsageError(f"--{option} {getattr(key, field[1])}: {rule}") from None


def _show(secret: str) -> None:
    """Raises `OSError` if it cannot be written."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    try:
        print(secret, flush=True)
    except OSError:
        discard_output()
        raise


def _revoke(settings: Settings, name: str) -> None:
    with _api_keys(settings) as keys:
        if keys.pop(name, None) is None:
            raise UsageError(f"no key is named {name}; existing keys: {', '.join(keys) or 'none'}")
    print(f"revoked {name}", file=sys.stderr)


def _disable(settings: Settings) -> None:
    """Rename the key file, and remove the record that keys were in force."""
    if settings.access.keys_file is not None:
        raise UsageError("access.keys_file names a key file, which the server requires; remove that setting first")
    path = keys_file(settings.data_dir)
    aside = path.with_name(f"{path.name}.disabled")
    with _locked(path):
        if path.is_symlink() or exists(path):
            path.rename(aside)
            print(f"{path} was renamed to {aside}; rename it back to use its keys again", file=sys.stderr)
        keys_required_file(settings.data_dir).unlink(missing_ok=True)
    text = "API keys are off from the next start of the server on: every caller that reaches it can use it"
    print(text, file=sys.stderr)


def _add_worker(settings: Settings, name: str, file: Path, *, agent: bool) -> None:
    _check_name(name)
    if agent and not is_machine_name(name):
        raise UsageError(f"a machine cannot be named {name!r}: its name ends with a letter or digit")
    pair, server = new_pair(), load_server_keys(settings.data_dir)
    own = new_pair() if agent else None
    secret: WorkerKey | AgentKey = WorkerKey(pair.public, pair.secret, server.public)
    if own is not None:
        secret = AgentKey(own, pair, server.public)
    with contextlib.ExitStack() as on_error:
        with _worker_keys(settings) as workers:
            if name in workers:
                raise UsageError(f"a worker key named {name} exists already; revoke it first, or choose another name")
            workers[name] = AllowedWorker(pair.public, _today(), own.public if own is not None else None)
            parse_workers(msgspec.to_builtins(AllowedWorkers(workers)))
            if not create(file, msgspec.to_builtins(secret)):
                raise UsageError(f"{file} exists; it is not overwritten")
            on_error.callback(file.unlink, missing_ok=True)  # the list was not written: the secret is useless
        on_error.pop_all()
    address = _join_address(settings.workers.listen)
    print(f"{file} holds the secret of {name}. Copy it to the worker's machine, and start there:", file=sys.stderr)
    print(f"python -m worker {'--agent ' if agent else ''}--join {address} --key-file {file.name}")
    if settings.workers.listen is None:
        print("HOST and PORT are those of workers.listen; with --config FILE they are filled in", file=sys.stderr)
    elif "//HOST:" in address:
        print("HOST is a name or an address of this machine that the other machine reaches", file=sys.stderr)
    if agent:
        print(f"or, as a service there, /etc/systemd/system/muster-agent.service:\n\n{_unit(address)}", file=sys.stderr)


def _join_address(listen: str | None) -> str:
    """Return where a worker connects to. HOST stands for a host that is not known: no machine connects to 0.0.0.0."""
    if listen is None:
        return "tcp://HOST:PORT"
    host, _, port = listen.removeprefix("tcp://").rpartition(":")
    with contextlib.suppress(ValueError):  # a name
        if ipaddress.ip_address(host.strip("[]")).is_unspecified:
            return f"tcp://HOST:{port}"
    return listen


def _unit(address: str) -> str:
    """Return a systemd unit of an agent."""
    return _AGENT_UNIT.replace("ADDRESS", address)


def _revoke_worker(settings: Settings, name: str) -> None:
    with _worker_keys(settings) as workers:
        if workers.pop(name, None) is None:
            raise UsageError(f"no worker key is named {name}; existing keys: {', '.join(workers) or 'none'}")
    print(f"revoked {name}", file=sys.stderr)


def _list(settings: Settings) -> None:
    path = keys_file(settings.data_dir, settings.access.keys_file)
    ring = read(path, parse_ring) if exists(path) else None
    for name, key in ring.keys.items() if ring else ():
        rate = f"{key.requests_per_minute}/min" if key.requests_per_minute else "no rate limit"
        at_once = f"{key.max_concurrent} at once" if key.max_concurrent else "no concurrency limit"
        tokens = f", {key.tokens_per_minute} tokens/min" if key.tokens_per_minute else ""
        limits = f"weight {key.weight:g}; {rate}, {at_once}{tokens}"
        print(f"{name}: {', '.join(key.scopes)}; {limits}; created {key.created or '?'}")
    if ring is None:
        if is_recorded(settings.data_dir) or settings.access.keys_file is not None:
            print(f"no API keys: {path} does not exist, and the server does not start without it", file=sys.stderr)
        else:
            print(f"no API keys ({path} does not exist): no request needs one", file=sys.stderr)
    allowed = curve_dir(settings.data_dir) / ALLOWED_WORKERS
    for name, worker in (read(allowed, parse_workers).workers if exists(allowed) else {}).items():
        kind = "worker" if worker.agent is None else "agent"
        print(f"{kind} {name}: {worker.agent or worker.public}; created {worker.created or '?'}")


@contextlib.contextmanager
def _api_keys(settings: Settings) -> Iterator[dict[str, ApiKey]]:
    """Yield the keys for changes, and write them if the block raises nothing."""
    path = keys_file(settings.data_dir, settings.access.keys_file)
    with _locked(path):
        keys = dict(read(path, parse_ring).keys) if exists(path) else {}
        yield keys
        tree = msgspec.to_builtins(KeyRing(keys))
        parse_ring(tree)
        write(path, tree)


@contextlib.contextmanager
def _worker_keys(settings: Settings) -> Iterator[dict[str, AllowedWorker]]:
    """Yield the workers for changes, and write them if the block raises nothing."""
    path = curve_dir(settings.data_dir) / ALLOWED_WORKERS
    with _locked(path):
        workers = dict(read(path, parse_workers).workers) if exists(path) else {}
        yield workers
        write(path, msgspec.to_builtins(AllowedWorkers(workers)))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file's lock: of two concurrent changes one would be lost."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=10):
        yield


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


if __name__ == "__main__":
    sys.exit(main())
