"""The program `gateway`: reads the environment and the command line, then does one thing.

What is wrong is said in sentences on stderr, with exit code 2 (`gateway config`: 1). Everything heavy is imported by
the command that needs it, so that `gateway --help` and `gateway token` stay quick.
"""

# ruff: noqa: PLC0415 - each command imports what only it needs

import argparse
import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from gateway.config import Settings
from gateway.parsers import ConfigError
from storage.documents import StoreUnavailable
from storage.objects import ObjectsUnavailable

_OVERRIDES = ("host", "port", "workers")


def main(argv: Sequence[str] | None = None) -> int:
    """Do what `argv` (the process's own arguments) says; the exit code. `--help` and misuse raise SystemExit."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except ConfigError as error:
        return _refuse(error.sentences)
    except (StoreUnavailable, ObjectsUnavailable) as error:
        return _refuse([f"{error}."])
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _refuse([_told(error)])
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gateway",
        description="Short videos from one phone to another.",
        epilog="Settings are environment variables that begin with GATEWAY_; `gateway config` shows them all.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve apps")
    serve.add_argument("--host", help="the address to listen on (GATEWAY_HOST)")
    serve.add_argument("--port", help="the port to listen on, 0 for a free one (GATEWAY_PORT)")
    serve.add_argument("--workers", metavar="N", help="how many processes serve (GATEWAY_WORKERS)")
    serve.add_argument(
        "--worker",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also send wakeups and sweep, in this process or beside many (on unless switched off)",
    )
    serve.set_defaults(command=_serve)

    worker = commands.add_parser("worker", help="send wakeups and sweep, for processes that serve without")
    worker.set_defaults(command=_worker)

    sweep = commands.add_parser("sweep", help="finish once what was left half done, and say what that was")
    sweep.add_argument("--full", action="store_true", help="look at everything, not only at what is recent")
    sweep.add_argument("--restart", action="store_true", help="with --full: from the beginning, though one was cut off")
    sweep.set_defaults(command=_sweep)

    token = commands.add_parser("token", help="print a token for a client, signed with the HS256 secret")
    token.add_argument("client", metavar="CLIENT", help="the client_id")
    token.add_argument("--device", metavar="D", help="bind the token to this device_id")
    token.add_argument("--ttl", type=_ttl, default=86_400, metavar="SECONDS", help="how long it is good (a day)")
    token.set_defaults(command=_token)

    setup = commands.add_parser(
        "setup", help="make what is missing: folders, database, secret, table, bucket, queue; repeatable"
    )
    instead = setup.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="say what it would do, and do nothing")
    instead.add_argument("--policy", action="store_true", help="print the IAM policy of the gateway, and do nothing")
    setup.set_defaults(command=_setup)

    cost = commands.add_parser("cost", help="say what the stores of a gateway cost, in dollars, from its metrics")
    cost.add_argument(
        "sources",
        nargs="*",
        metavar="METRICS",
        help="addresses of /metrics, files, or - for standard input; those of all processes together"
        " (the gateway of the settings)",
    )
    cost.add_argument("--token", help="the operator's token, for addresses (GATEWAY_OPERATOR_TOKEN)")
    cost.add_argument("--over", type=_positive, metavar="SECONDS", help="measure for so long, not since the start")
    cost.add_argument("--prices", metavar="FILE", help="other prices than those that gateway/prices.toml has")
    cost.add_argument(
        "--flat",
        action="append",
        default=[],
        type=_named_price,
        metavar="NAME=DOLLARS",
        help="what else costs so much an hour; repeatable",
    )
    cost.add_argument("--days", type=_positive, default=1.0, help="how long a video's bytes lie in S3 (1)")
    cost.add_argument("--json", action="store_true", help="for machines")
    cost.set_defaults(command=_cost)

    config = commands.add_parser("config", help="show every setting, its value and where it came from")
    config.set_defaults(command=_config)
    return parser


def _ttl(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 10 * 366 * 86_400:
        raise argparse.ArgumentTypeError("must be a whole number of seconds, from 1 to ten years")
    return int(text)


def _positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < 1e9:
            return number
    raise argparse.ArgumentTypeError("must be a number above 0")


def _named_price(text: str) -> tuple[str, float]:
    name, _, price = text.partition("=")
    if not name or not price:
        raise argparse.ArgumentTypeError("must be NAME=DOLLARS, dollars an hour")
    return name, _positive(price)


def _serve(arguments: argparse.Namespace) -> int:
    given = {name.upper(): getattr(arguments, name) for name in _OVERRIDES}
    settings = _settings({name: text for name, text in given.items() if text is not None})
    _prepare(settings)

    from gateway import log, processes

    log.configure(settings.log_format, settings.log_level)
    with _listening(settings.host, settings.port, setting="PORT", argument=" or give --port"):
        return processes.serve(settings, worker=arguments.worker)


def _worker(_arguments: argparse.Namespace) -> int:
    settings = _settings()
    _prepare(settings)

    from gateway import log, processes

    log.configure(settings.log_format, settings.log_level)
    with _listening(settings.host, settings.worker_port, setting="WORKER_PORT"):
        return processes.work(settings)


def _sweep(arguments: argparse.Namespace) -> int:
    if arguments.restart and not arguments.full:
        raise ConfigError(["--restart means nothing without --full: give that too, or leave it out."])
    settings = _settings()

    from gateway import log, processes

    log.configure(settings.log_format, settings.log_level)
    print(processes.sweep(settings, full=arguments.full, restart=arguments.restart))
    return 0


def _token(arguments: argparse.Namespace) -> int:
    settings = _settings()
    secret = settings.signing_secret()
    if secret is None:
        raise ConfigError(["This gateway verifies tokens with a public key: whoever has the private one issues them."])

    from gateway.api.auth import issue_token

    try:
        token = issue_token(
            secret,
            arguments.client,
            device_id=arguments.device,
            ttl_s=arguments.ttl,
            now=time.time(),
            audience=settings.jwt_audience,
            issuer=settings.jwt_issuer,
        )
    except ValueError as error:
        raise ConfigError([f"{error}."]) from error
    print(token)
    return 0


def _setup(arguments: argparse.Namespace) -> int:
    settings = _settings()

    from gateway import processes

    if arguments.policy:
        print(processes.rights(settings))
        return 0
    for line in _unprepared(settings) if arguments.dry_run else _prepare(settings):
        print(line)
    for line in processes.plan(settings) if arguments.dry_run else processes.setup(settings):
        print(line, flush=True)  # the next may take minutes
    return 0


def _unprepared(settings: Settings) -> list[str]:
    """What `_prepare` would do."""
    missing = [] if settings.data_dir.exists() else [f"would make the folder {settings.data_dir}"]
    if settings.secret_file is not None and not settings.secret_file.exists():
        missing.append(f"would make up the secret of the clients' tokens in {settings.secret_file}")
    return missing


def _cost(arguments: argparse.Namespace) -> int:
    from decimal import Decimal
    from pathlib import Path

    from gateway import cost, readings

    sources, token = arguments.sources, arguments.token
    if not sources or (token is None and any(map(readings.is_address, sources))):
        settings = _settings()
        sources, token = sources or [_own_metrics(settings)], token or settings.operator_token
    if arguments.over is not None and not all(map(readings.is_address, sources)):
        raise ConfigError(["--over measures gateways that run: give their addresses, not files."])
    try:
        prices = cost.Prices.built_in()
        if arguments.prices is not None:
            prices = cost.Prices.parse(Path(arguments.prices).read_text("utf-8"), source=arguments.prices)
        used = readings.measured(sources, token=token, over_s=arguments.over)
    except readings.Uncountable as error:
        raise ConfigError([f"{error}."]) from error
    flat = {name: Decimal(str(dollars)) for name, dollars in arguments.flat}
    found = cost.bill(used, prices, days=Decimal(str(arguments.days)), flat=flat)
    print(cost.as_json(found) if arguments.json else cost.told(found))
    return 0


def _own_metrics(settings: Settings) -> str:
    """Where the gateway of these settings, on this machine, tells its metrics."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - it listens there
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}/metrics"


def _config(_arguments: argparse.Namespace) -> int:
    try:
        settings = _settings()
    except ConfigError as error:
        _refuse(error.sentences)
        return 1
    widths = [max(map(len, column)) for column in zip(*((s.variable, s.shown) for s in settings.given), strict=True)]
    for setting in settings.given:
        print(f"{setting.variable:{widths[0]}}  {setting.shown:{widths[1]}}  {setting.origin}")
    return 0


def _settings(arguments: dict[str, str] | None = None) -> Settings:
    """The settings, keys included: whether a key will do is known to `auth` alone."""
    settings = Settings.load(os.environ, arguments=arguments)
    if settings.jwt_public_key:
        from gateway.api.keys import FixedKey

        try:
            FixedKey.from_pem(settings.jwt_public_key)
        except ValueError as error:
            raise ConfigError([f"GATEWAY_JWT_PUBLIC_KEY will not do: {error}."]) from error
    return settings


def _prepare(settings: Settings) -> list[str]:
    """Make the data folder and the secret where they are missing; what was done. Raises ConfigError and OSError."""
    done = []
    if not settings.data_dir.exists():
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        done.append(f"made the folder {settings.data_dir}")
    if not os.access(settings.data_dir, os.W_OK | os.X_OK):
        raise ConfigError([f"The folder {settings.data_dir} is not writable: change that, or set GATEWAY_DATA_DIR."])
    secret_is_new = settings.secret_file is not None and not settings.secret_file.exists()
    settings.signing_secret()
    if secret_is_new:
        done.append(f"made up the secret of the clients' tokens in {settings.secret_file}")
    return done


@contextlib.contextmanager
def _listening(host: str, port: int | None, *, setting: str, argument: str = "") -> Iterator[None]:
    """What goes wrong with listening there is a sentence about `setting`."""
    try:
        yield
    except OSError as error:
        # Binding is the one thing in there whose errors name no file.
        if error.errno in {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES} and error.filename is None:
            remedy = f"set GATEWAY_{setting}{argument}"
            raise ConfigError([_cannot_listen(f"{host} port {port}", error.errno, remedy)]) from error
        raise


def _cannot_listen(where: str, number: int | None, remedy: str) -> str:
    match number:
        case errno.EADDRINUSE:
            return f"{where} is in use: {remedy}; 0 picks a free one."
        case errno.EADDRNOTAVAIL:
            return f"{where}: this machine does not have that address: set GATEWAY_HOST or give --host."
        case _:
            return f"{where}: this user may not listen there: {remedy}, from 1024 on."


def _told(error: OSError) -> str:
    subject = f"{error.filename}: " if error.filename else ""
    return f"{subject}{error.strerror or error}."


def _refuse(sentences: Sequence[str]) -> int:
    for sentence in sentences:
        print(f"gateway: {sentence}", file=sys.stderr)
    return 2
