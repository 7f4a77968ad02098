"""What stands in the files for containers is there, and is accepted. No container engine runs here: whether they run is
not tested."""

import asyncio
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from gateway.api.bodies import LONGEST_WAIT_S
from gateway.api.operator import PROBE_S
from gateway.cli import main
from gateway.config import SETTINGS, Settings
from gateway.server import KEEP_ALIVE_S
from tests.redis_servers import free_port
from tests.running import SECRET, running_gateway

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
OPERATIONS = (ROOT / "docs" / "operations.md").read_text("utf-8")

GATEWAYS = [name for name, service in COMPOSE["services"].items() if service["image"] == "gateway"]
NEEDED = {"GATEWAY_JWT_SECRET": SECRET, "GATEWAY_OPERATOR_TOKEN": "the operator's own token"}


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile and what follows it, on one line."""
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    return [(name, rest) for line in joined.splitlines() for name, _, rest in (line.partition(" "),)]


def filled(text: str) -> str:
    """A text of compose.yaml as the container gets it: `${NAME:?…}` as needed, `${NAME:-default}` by itself."""
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: NEEDED[found[1]], text)
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    return text.replace("$$", "$")


def environment(service: str) -> dict[str, str]:
    image = dict(re.findall(r"(GATEWAY_\w+)=(\S+)", DOCKERFILE))
    return image | {name: filled(text) for name, text in COMPOSE["services"][service]["environment"].items()}


def settings_of(environ: Mapping[str, str]) -> Settings:
    return Settings.load({name: text for name, text in environ.items() if name.startswith("GATEWAY_")})


# --- The image


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and line[0] != "#"]
    copied = [shlex.split(rest) for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    sources = [source for *some, _ in copied for source in some]
    assert set(sources) == {"LICENSE", "requirements-full.txt", "gateway", "storage", "push"}
    for source in sources:
        assert (ROOT / source).exists(), source
        decisive = [rule for rule in rules if fnmatch(source, rule.lstrip("!"))]
        assert decisive[-1] == f"!{source}"


def test_stages_copy_from_stages_that_are_there() -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE)
    assert stages == ["packages"]
    assert re.findall(r"--from=(\S+)", DOCKERFILE) == stages
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"python:3.12-slim"}
    assert set(re.findall(r"lib/(python[0-9.]+)/", DOCKERFILE)) == {"python3.12"}


def test_all_packages_of_the_project_are_in_the_image() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    packages = re.search(r"^packages = (\[.*\])$", project, re.MULTILINE)
    assert packages is not None
    copied = re.findall(r"^COPY (\w+) /venv/lib/python3\.12/site-packages/\1$", DOCKERFILE, re.MULTILINE)
    assert copied == json.loads(packages[1])


def test_the_image_is_nobodys_root_and_ends_in_peace() -> None:
    given = dict(instructions())
    assert given["USER"] == "10001:10001"
    assert given["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(given["ENTRYPOINT"]) == ["gateway"]
    assert json.loads(given["CMD"]) == ["serve"]
    assert given["EXPOSE"] == next(setting.default for setting in SETTINGS if setting.name == "PORT")
    assert (given["VOLUME"], given["WORKDIR"]) == ("/data", "/data")
    assert re.findall(r"(GATEWAY_\w+)=(\S+)", DOCKERFILE) == [
        ("GATEWAY_DATA_DIR", "/data"),
        ("GATEWAY_HOST", "0.0.0.0"),  # noqa: S104 - it is what the image says
    ]


def test_the_image_without_a_key_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEWAY_HOST", "0.0.0.0")  # noqa: S104
    assert main(["serve"]) == 2
    assert "set GATEWAY_JWT_SECRET" in capsys.readouterr().err


async def test_the_health_check_tells_a_gateway_that_answers_from_one_that_does_not(tmp_path: Path) -> None:
    (line,) = (rest for name, rest in instructions() if name == "HEALTHCHECK")
    program, *arguments = json.loads(line[line.index("CMD ") + 4 :])
    assert program == "python"

    def check(port: int) -> subprocess.CompletedProcess[bytes]:
        environ = {"GATEWAY_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
        return subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, check=False, timeout=30)

    assert check(free_port()).returncode != 0
    async with running_gateway(tmp_path) as running:
        assert (await asyncio.to_thread(check, running.port)).returncode == 0


# --- The small cluster


def test_the_settings_of_the_cluster_are_accepted() -> None:
    assert GATEWAYS == ["gateway-1", "gateway-2", "worker", "setup"]
    known = {setting.variable for setting in SETTINGS}
    for name in GATEWAYS:
        environ = environment(name)
        assert {variable for variable in environ if variable.startswith("GATEWAY_")} <= known
        settings = settings_of(environ)
        assert not settings.bus_is_in_process
        assert settings.state_url.startswith("redis://redis:")


def test_the_services_ask_for_services_that_are_there() -> None:
    services = COMPOSE["services"]
    hosts = set(re.findall(r"(?:redis|http)://([a-z][a-z0-9-]*):\d", json.dumps(COMPOSE["x-settings"])))
    assert hosts - {"localhost"} == {"redis", "minio"}
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        assert {volume.partition(":")[0] for volume in service.get("volumes", ())} <= set(COMPOSE["volumes"])
    assert services["setup"]["restart"] == "no"
    assert services["setup"]["command"] == ["setup"]


def test_a_process_has_time_to_drain_before_it_is_killed() -> None:
    for name in GATEWAYS:
        grace_s = int(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s"))
        settings = settings_of(environment(name))
        assert grace_s > settings.drain_s
        assert COMPOSE["services"][name]["ulimits"]["nofile"] > settings.max_connections + 512


def test_the_health_check_of_the_image_fits_the_worker() -> None:
    assert settings_of(environment("worker")).worker_port == settings_of(environment("gateway-1")).port


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    text = filled(COMPOSE["configs"]["nginx"]["content"])
    gateways = re.findall(r"server (gateway-\d):(\d+);", text)
    assert gateways == [(name, "8000") for name in GATEWAYS[:2]]
    (idle_s,) = map(int, re.findall(r"keepalive_timeout (\d+)s", text))
    assert idle_s < KEEP_ALIVE_S
    assert settings_of(environment("gateway-1")).ping_s < 75
    if not shutil.which("nginx"):
        pytest.skip("nginx is not installed")
    text = re.sub(r"gateway-\d:", "127.0.0.1:", text).replace("listen 8000", f"listen 127.0.0.1:{free_port()}")
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid;\n{text}")
    arguments = ["-t", "-e", str(tmp_path / "log"), "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    tested = subprocess.run(["nginx", *arguments], capture_output=True, text=True, check=False, timeout=30)
    assert tested.returncode == 0, tested.stderr


# --- The presets that operators copy


def presets() -> list[dict[str, str]]:
    """The settings in each block of docs/operations.md that sets some."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", OPERATIONS, re.MULTILINE | re.DOTALL)
    found = [dict(re.findall(r"^(?:export )?([A-Z_]+)='?([^'\n]+)'?$", block, re.MULTILINE)) for block in blocks]
    return [given for given in found if "GATEWAY_STATE_URL" in given]


def test_the_presets_are_accepted(tmp_path: Path) -> None:
    found = presets()
    assert [given["GATEWAY_STATE_URL"].partition(":")[0] for given in found] == ["sqlite", "redis", "dynamodb"]
    for given in found:
        given = {name: SECRET if text.startswith("$(") else text for name, text in given.items()}  # noqa: PLW2901
        for name in ("GATEWAY_APNS_KEY_FILE", "GATEWAY_FCM_CREDENTIALS_FILE"):
            if name in given:
                (tmp_path / "key").write_text("a key")
                given[name] = str(tmp_path / "key")
        settings = settings_of(given)
        assert settings.operator_token
        assert settings.public_url


# --- What operators are told to look for


def test_the_faults_have_messages_that_are_really_logged() -> None:
    source = "\n".join(
        path.read_text("utf-8") for house in ("gateway", "storage", "push") for path in (ROOT / house).rglob("*.py")
    )
    table = OPERATIONS.partition("## What each fault looks like")[2]
    rows = [re.sub(r"`[^`]*`", "", line) for line in table.splitlines() if line.startswith("|")]
    messages = {message for row in rows for message in re.findall(r'"([^"]+)"', row)}
    assert len(messages) > 25
    assert {message for message in messages if f'"{message}' not in source} == set()


def test_the_numbers_for_load_balancers_fit_the_code() -> None:
    defaults = Settings.load({})
    row = {
        cells[1].strip(): cells
        for line in OPERATIONS.splitlines()
        if line.startswith("|")
        for cells in [line.split("|")]
    }
    assert f"polls are held for {LONGEST_WAIT_S} s" in row["idle time on the way to apps"][3]
    assert f"pinged every {defaults.ping_s:g} s" in row["idle time on the way to apps"][3]
    assert row["idle time of kept connections to the gateway"][2].strip() == f"below {KEEP_ALIVE_S} s"
    assert LONGEST_WAIT_S < 70 < KEEP_ALIVE_S
    assert f"it takes {PROBE_S:g} s to say so" in row["health check"][3]
    assert defaults.drain_s < 40
