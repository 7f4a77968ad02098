import errno
import os
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jwt
import pytest

import gateway
from gateway.cli import main
from gateway.config import SETTINGS, Settings
from storage.documents import StoreUnavailable

SECRET = "correct horse battery staple, and more"
PEM = "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n"
ED25519 = PEM.format("MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=")

Output = pytest.CaptureFixture[str]


class App:
    """Stands in for `gateway.processes`: what `main` asks of it, and with which settings."""

    def __init__(self) -> None:
        self.settings: list[Settings] = []
        self.worker: bool | None = None
        self.full: bool | None = None
        self.restart: bool | None = None
        self.do: Callable[[Settings], None] = lambda _: None

    def serve(self, settings: Settings, *, worker: bool) -> int:
        self.settings.append(settings)
        self.worker = worker
        self.do(settings)
        return 7

    def work(self, settings: Settings) -> int:
        self.settings.append(settings)
        self.do(settings)
        return 7

    def sweep(self, settings: Settings, *, full: bool, restart: bool) -> str:
        self.settings.append(settings)
        self.full, self.restart = full, restart
        self.do(settings)
        return "nothing was left half done"

    def setup(self, settings: Settings) -> list[str]:
        self.settings.append(settings)
        self.do(settings)
        return ["made the database"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GATEWAY_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    app = App()
    monkeypatch.setitem(sys.modules, "gateway.processes", app)
    monkeypatch.setattr(gateway, "processes", app, raising=False)
    monkeypatch.setitem(sys.modules, "gateway.log", SimpleNamespace(configure=lambda *_: None))
    monkeypatch.setattr(gateway, "log", sys.modules["gateway.log"], raising=False)
    return app


def refused(output: Output, *arguments: str, code: int = 2) -> str:
    """Runs `gateway` with `arguments`, which must fail in sentences; those."""
    assert main(arguments) == code
    out, err = output.readouterr()
    assert out == ""
    assert all(re.fullmatch(r"gateway: .*\.", line) for line in err.splitlines())
    return err


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_serve_gets_the_settings_with_the_arguments_before_the_environment(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "1")
    monkeypatch.setenv("GATEWAY_DRAIN_S", "2")
    assert main(["serve", "--port", "9", "--host", "::1", "--workers", "1"]) == 7
    assert (app.settings[0].port, app.settings[0].host, app.settings[0].drain_s) == (9, "::1", 2)
    assert app.worker is True


def test_serve_may_leave_the_worker_out(app: App) -> None:
    main(["serve", "--no-worker"])
    assert app.worker is False


def test_serve_makes_the_data_folder_and_the_secret(app: App, tmp_path: Path) -> None:
    main(["serve"])
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "data" / "jwt.secret").stat().st_mode) == 0o600


def test_serve_names_every_mistake_and_does_not_start(app: App, output: Output, tmp_path: Path) -> None:
    errors = refused(output, "serve", "--port", "x", "--workers", "3", "--host", "0.0.0.0")  # noqa: S104
    assert "--port must be" in errors
    assert "GATEWAY_WORKERS" in errors
    assert "GATEWAY_JWT_SECRET" in errors
    assert not app.settings
    assert not (tmp_path / "data").exists()


@pytest.fixture
def output(capsys: Output) -> Output:
    return capsys


def test_a_port_in_use_is_a_sentence(app: App, output: Output) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        def listen(settings: Settings) -> None:
            with socket.socket() as mine:
                mine.bind((settings.host, settings.port))

        app.do = listen
        assert f"127.0.0.1 port {port} is in use" in refused(output, "serve", "--port", str(port))


@pytest.mark.parametrize(
    ("number", "said"), [(errno.EADDRNOTAVAIL, "does not have that address"), (errno.EACCES, "may not listen there")]
)
def test_an_address_that_cannot_be_had_is_a_sentence(app: App, output: Output, number: int, said: str) -> None:
    def fail(_: Settings) -> None:
        raise OSError(number, os.strerror(number))

    app.do = fail
    assert said in refused(output, "serve")


@pytest.mark.parametrize("command", ["serve", "sweep", "setup"])
def test_a_file_or_store_that_cannot_be_used_is_a_sentence(app: App, output: Output, command: str) -> None:
    def deny(_: Settings) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/srv/state.db")

    def unavailable(_: Settings) -> None:
        raise StoreUnavailable("cannot open /srv/state.db: it is no database")

    app.do = deny
    output.readouterr()
    main([command])
    assert output.readouterr().err == "gateway: /srv/state.db: Permission denied.\n"
    app.do = unavailable
    assert "it is no database." in refused(output, command)


def test_a_data_folder_that_cannot_be_made_is_a_sentence(
    app: App, output: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GATEWAY_DATA_DIR", str(tmp_path / "file" / "data"))
    for command in ("serve", "setup"):
        assert str(tmp_path / "file" / "data") in refused(output, command)
    assert "GATEWAY_DATA_DIR" in refused(output, "token", "alice")


def test_a_data_folder_that_is_not_writable_is_a_sentence(
    app: App, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # a mode would not stop root
    assert "is not writable" in refused(output, "serve")


def test_a_bug_is_not_dressed_up_as_a_sentence(app: App) -> None:
    def fail(_: Settings) -> None:
        raise KeyError("bug")

    app.do = fail
    with pytest.raises(KeyError):
        main(["serve"])


def test_a_keyboard_interrupt_ends_quietly(app: App, output: Output) -> None:
    def interrupt(_: Settings) -> None:
        raise KeyboardInterrupt

    app.do = interrupt
    assert main(["serve"]) == 130
    assert output.readouterr().err == ""


def test_a_port_of_the_workers_pages_in_use_is_a_sentence_about_that(
    app: App, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listen(settings: Settings) -> None:
        with socket.socket() as mine:
            mine.bind((settings.host, settings.worker_port))

    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("GATEWAY_WORKER_PORT", str(port := taken.getsockname()[1]))
        app.do = listen
        errors = refused(output, "worker")
    assert errors == f"gateway: 127.0.0.1 port {port} is in use: set GATEWAY_WORKER_PORT; 0 picks a free one.\n"


def test_worker_works_with_the_settings_of_the_environment(app: App, tmp_path: Path) -> None:
    assert main(["worker"]) == 7
    assert app.settings[0].data_dir == tmp_path / "data"
    assert (tmp_path / "data").is_dir()


def test_sweep_prints_its_report(app: App, output: Output) -> None:
    assert main(["sweep"]) == 0
    assert app.full is False
    assert output.readouterr().out == "nothing was left half done\n"
    main(["sweep", "--full"])
    assert (app.full, app.restart) == (True, False)
    main(["sweep", "--full", "--restart"])
    assert (app.full, app.restart) == (True, True)


def test_a_recent_sweep_has_no_beginning_to_go_back_to(app: App, output: Output) -> None:
    errors = refused(output, "sweep", "--restart")
    assert errors == "gateway: --restart means nothing without --full: give that too, or leave it out.\n"


def test_setup_says_what_it_did_and_does_it_once(app: App, output: Output, tmp_path: Path) -> None:
    assert main(["setup"]) == 0
    done = output.readouterr().out
    assert f"made the folder {tmp_path / 'data'}\n" in done
    assert "jwt.secret\n" in done
    secret = (tmp_path / "data" / "jwt.secret").read_text()
    assert secret not in done
    assert main(["setup"]) == 0
    assert output.readouterr().out == "made the database\n"
    assert (tmp_path / "data" / "jwt.secret").read_text() == secret


def test_token_prints_just_a_token(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_JWT_SECRET", SECRET)
    monkeypatch.setenv("GATEWAY_JWT_AUDIENCE", "gw")
    monkeypatch.setenv("GATEWAY_JWT_ISSUER", "id")
    assert main(["token", "alice", "--device", "phone-1", "--ttl", "60"]) == 0
    token = output.readouterr().out.strip()
    claims = jwt.decode(token, SECRET, algorithms=["HS256"], audience="gw", issuer="id")
    assert (claims["sub"], claims["device"]) == ("alice", "phone-1")
    assert 0 < claims["exp"] - time.time() <= 60


def test_token_signs_with_the_made_up_secret_that_serve_will_use(output: Output, tmp_path: Path) -> None:
    assert main(["token", "alice"]) == 0
    token = output.readouterr().out.strip()
    claims = jwt.decode(token, (tmp_path / "data" / "jwt.secret").read_text(), algorithms=["HS256"])
    assert "device" not in claims


@pytest.mark.parametrize("arguments", [["a b"], ["."], [""], ["x" * 65], ["alice", "--device", ".."]])
def test_token_refuses_an_ill_formed_id(output: Output, arguments: list[str]) -> None:
    assert re.search(r"client_id|device_id", refused(output, "token", *arguments))


@pytest.mark.parametrize("ttl", ["0", "-1", "x", "1.5", "9" * 20])
def test_token_refuses_a_time_that_is_none(output: Output, ttl: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(["token", "alice", f"--ttl={ttl}"])
    assert left.value.code == 2


@pytest.mark.parametrize(("name", "text"), [("JWT_PUBLIC_KEY", ED25519), ("JWKS_URL", "https://id.example.com/keys")])
def test_token_needs_a_secret(output: Output, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(f"GATEWAY_{name}", text)
    assert "private one" in refused(output, "token", "alice")


def test_config_shows_every_setting_its_value_and_where_it_came_from(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_JWT_SECRET", SECRET)
    monkeypatch.setenv("GATEWAY_PORT", "9")
    assert main(["config"]) == 0
    out = output.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == [setting.variable for setting in SETTINGS]
    assert re.search(r"^GATEWAY_PORT +9 +environment$", out, re.MULTILINE)
    assert re.search(r"^GATEWAY_HOST +127\.0\.0\.1 +default$", out, re.MULTILINE)
    assert re.search(r"^GATEWAY_JWT_SECRET +\(hidden\) +environment$", out, re.MULTILINE)
    assert SECRET not in out


def test_config_makes_nothing(output: Output, tmp_path: Path) -> None:
    assert main(["config"]) == 0
    assert not (tmp_path / "data").exists()


def test_config_says_what_is_wrong_with_exit_code_1(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PROT", "9")
    assert "did you mean GATEWAY_PORT?" in output_of_wrong_config(output)


def test_a_public_key_of_the_wrong_kind_is_found_at_once(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_JWT_PUBLIC_KEY", PEM.format("AAAA"))
    assert "GATEWAY_JWT_PUBLIC_KEY" in output_of_wrong_config(output)


def output_of_wrong_config(output: Output) -> str:
    assert main(["config"]) == 1
    out, err = output.readouterr()
    assert out == ""
    return err


def test_the_module_is_the_program(tmp_path: Path) -> None:
    told = run("config", GATEWAY_PORT="x", GATEWAY_DATA_DIR=str(tmp_path))
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == "gateway: GATEWAY_PORT must be a whole number from 0 to 65535, not 'x'.\n"
    assert run("--help").returncode == 0
    assert run("fly").returncode == 2


def test_help_and_misuse_import_nothing_heavy() -> None:
    code = (
        "import sys; from gateway.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'jwt', 'uvicorn', 'starlette', 'asyncio'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert told.stdout.splitlines()[-1] == "[]"
