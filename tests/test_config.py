import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.config import PREFIX, SETTINGS, Origin, Settings
from gateway.parsers import ConfigError, LogFormat, LogLevel, PushContent, Rate, is_loopback
from gateway.secret_file import made_up_secret

SECRET = "s" * 32
REDIS = "redis://127.0.0.1:6379"
PEM = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n"


APNS = {
    "APNS_KEY_FILE": __file__,
    "APNS_KEY_ID": "ABCDEFGHIJ",
    "APNS_TEAM_ID": "KLMNOPQRST",
    "APNS_TOPIC": "org.example.app",
}


def load(**variables: str) -> Settings:
    return Settings.load({PREFIX + name: text for name, text in variables.items()})


def complaints(**variables: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        load(**variables)
    return refused.value.sentences


def test_without_any_variable_everything_has_its_default() -> None:
    settings = Settings.load({"PATH": "/bin", "HOME": "/root"})
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8000, 1)
    assert settings.state_url == "sqlite:///./data/state.db"
    assert settings.objects_url == "file:./data/objects"
    assert settings.max_video_bytes == 100 * 1024 * 1024
    assert (settings.video_ttl_s, settings.ended_keep_s, settings.viewed_keep_s) == (30 * 86_400, 7 * 86_400, 0)
    assert list(settings.remind_after_s) == [3600, 28_800, 86_400]
    assert settings.rate_calls == Rate(20, 100)
    assert (settings.log_format, settings.log_level) == (LogFormat.TEXT, LogLevel.INFO)
    assert settings.push_content is PushContent.PACKET
    assert [settings.jwt_secret, settings.jwt_public_key, settings.jwks_url, settings.public_url] == [None] * 4
    assert {given.origin for given in settings.given} == {Origin.DEFAULT}
    assert settings.bus_is_in_process


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("HOST", "::1", "::1"),
        ("HOST", "LocalHost", "localhost"),
        ("PORT", "0", 0),
        ("WORKER_PORT", "9100", 9100),
        ("PUBLIC_URL", "https://gw.example.com/", "https://gw.example.com"),
        ("JWKS_URL", "https://id.example.com/keys?v=1", "https://id.example.com/keys?v=1"),
        ("JWKS_URL", "http://127.0.0.1:9/keys", "http://127.0.0.1:9/keys"),
        ("JWT_SECRET", "with spaces inside " + SECRET, "with spaces inside " + SECRET),
        ("JWT_PUBLIC_KEY", PEM, PEM),
        ("JWT_PUBLIC_KEY", PEM.replace("\n", "\\n"), PEM),
        ("MAX_VIDEO_BYTES", "5", 5),
        ("MAX_VIDEO_BYTES", "2 KiB", 2048),
        ("MAX_VIDEO_BYTES", "5GiB", 5 << 30),
        ("CONTENT_TYPES", "Video/MP4, image/*", ("video/mp4", "image/*")),
        ("VIDEO_TTL_S", "21600.5", 21600.5),
        ("UPLOAD_TTL_S", "0.25", 0.25),
        ("REMIND_AFTER_S", "", ()),
        ("REMIND_AFTER_S", "0.5, 1", (0.5, 1)),
        ("PUSH_CONTENT", "wakeup", PushContent.WAKEUP),
        ("PUSH_ON", "video,status", {"video", "status"}),
        ("CORS_ORIGINS", "", ()),
        ("CORS_ORIGINS", "*", ("*",)),
        ("CORS_ORIGINS", "https://a.example, http://localhost:3000", ("https://a.example", "http://localhost:3000")),
        ("RATE_CALLS", "0", None),
        ("RATE_CALLS", "0.5/3", Rate(0.5, 3)),
        ("LOG_FORMAT", "json", LogFormat.JSON),
        ("LOG_LEVEL", "debug", LogLevel.DEBUG),
    ],
)
def test_a_value_is_read(name: str, text: str, value: object) -> None:
    assert getattr(load(**{name: text}), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("HOST", ["", "[::1]", "a b", "1.2.3", "1.2.3.4.5", "http://x", "-x", "127.0.0.1:80"]),
        ("WORKER_PORT", ["", "x", "65536"]),
        ("PORT", ["", "x", "-1", "65536", "8_0", "1.0", "\u0661", " 1"]),
        (
            "PUBLIC_URL",
            ["gw.example.com", "ftp://x", "http://x/?a", "http://x?", "http://u:p@x", "http://x/#f", "http://"],
        ),
        ("PUBLIC_URL", ["http://x:99999", "http://[::1", "http://x y"]),
        ("DATA_DIR", ["", "a\nb", "\udcff", "a\0"]),
        ("STATE_URL", ["nope", "postgres://x", "", "sqlite", "sqlite:x", "sqlite:///", "sqlite:///x?y=1", "memory:x"]),
        ("STATE_URL", ["dynamodb://", "dynamodb://t", "s3://bucket", "dynamodb://table?shards=0"]),
        ("OBJECTS_URL", ["s3://", "dynamodb://table", "s3://bucket?endpoint=host"]),
        ("UPLOAD_EVENTS_URL", ["", "sqs://", "s3://bucket", "memory:"]),
        ("OBJECTS_URL", ["gopher://x", "file:", "file://", "file://host/x", "sqlite:///x"]),
        (
            "BUS_URL",
            ["redis://", "redis://x:0", "redis://x/y", "redis://x,y", "redis+cluster://x/1", "memory", "file:x"],
        ),
        ("CACHE_URL", ["memory:", "redis", "redis://x?prefix=", "redis://x?ca=y", "rediss://x?db=1", ""]),
        ("JWT_SECRET", ["", "short", "s" * 31, SECRET + "\n", " " + SECRET, "{" + SECRET, "-----BEGIN X" + SECRET]),
        ("JWT_SECRET", ["é" * 40, "\udcff" * 40]),
        ("JWT_PUBLIC_KEY", ["", "/does/not/exist", "/", PEM.replace("PUBLIC", "PRIVATE"), __file__]),
        ("JWT_PUBLIC_KEY", [PEM.replace("PUBLIC KEY", "CERTIFICATE"), PEM + PEM.replace("PUBLIC", "PRIVATE")]),
        ("JWKS_URL", ["http://id.example.com/", "file:///etc/passwd", "https://u:p@id.example.com/", "id.example.com"]),
        ("JWT_AUDIENCE", [""]),
        ("VIDEOS_PER_PAIR", ["0", "17"]),
        ("MAX_VIDEO_BYTES", ["0", "1MB", "6GiB", "1.5MiB", "MiB", ""]),
        ("CONTENT_TYPES", ["", "video", "*/*", "video/mp4;codecs=x", "video/mp4,", "video/ mp4", "a b/c"]),
        ("VIDEO_TTL_S", ["0", "nan", "inf", "1e3", "-1", "1_0", "9" * 13, "30d"]),
        ("UPLOAD_TTL_S", ["0", "604801"]),
        ("REMIND_AFTER_S", ["2,1", "1,1", "0", "1,,2", "x", ",".join(map(str, range(1, 18)))]),
        ("PUSH_CONTENT", ["Packet", "", "both"]),
        ("PUSH_ON", ["", "status", "video,photo"]),
        ("CORS_ORIGINS", ["*,https://a.example", "https://a.example/", "a.example", "null", "https://*.example"]),
        ("RATE_CALLS", ["", "20", "0/5", "5/0", "-1/5", "1/2/3", "a/b"]),
        ("WORKERS", ["0", "x"]),
        ("OPERATOR_TOKEN", ["", "short", "s" * 15]),
        ("LOG_FORMAT", ["xml"]),
        ("LOG_LEVEL", ["INFO", "trace"]),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, texts: list[str]) -> None:
    for text in texts:
        (sentence,) = complaints(**{name: text})
        assert sentence.startswith(f"GATEWAY_{name} "), text
        assert sentence.endswith(".")


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("APNS_KEY_FILE", ["", "/does/not/exist", "/", "a\0"]),
        ("APNS_KEY_ID", ["", "short", "abcdefghij", "ABCDEFGHIJK", "ABCDE/GHIJ"]),
        ("APNS_TEAM_ID", ["", "ABCDEFGHI "]),
        ("APNS_TOPIC", ["", "org.example app", "*", "x" * 256]),
        ("APNS_ENDPOINT", ["", "http://127.0.0.1:1", "https://x/path", "https://u:p@x", "https://x?y", "x"]),
        ("APNS_CA_FILE", ["", "/does/not/exist"]),
        ("FCM_CREDENTIALS_FILE", ["", "/does/not/exist", "/"]),
        ("FCM_ENDPOINT", ["", "http://127.0.0.1:1", "https://x/path"]),
        ("FCM_CA_FILE", ["", "/does/not/exist"]),
    ],
)
def test_a_wrong_value_of_a_push_provider_is_refused_by_name(name: str, texts: list[str]) -> None:
    for text in texts:
        (sentence,) = complaints(**{**APNS, "FCM_CREDENTIALS_FILE": __file__, name: text})
        assert sentence.startswith(f"GATEWAY_{name} "), text
        assert sentence.endswith(".")


def test_all_mistakes_are_named_at_once() -> None:
    sentences = complaints(PORT="x", WORKERS="0", VIDEO_TTL_S="?", PROT="1", PUSH_ON="")
    assert len(sentences) == 5
    for name in ("PORT", "WORKERS", "VIDEO_TTL_S", "PROT", "PUSH_ON"):
        assert any(sentence.startswith(f"GATEWAY_{name} ") for sentence in sentences)


def test_an_unknown_variable_is_refused_with_the_likely_one() -> None:
    assert complaints(JWT_SECRETT=SECRET) == ("GATEWAY_JWT_SECRETT is no setting: did you mean GATEWAY_JWT_SECRET?",)
    (sentence,) = complaints(XQZ="1")
    assert "gateway config" in sentence
    assert "did you mean" not in sentence


def test_the_variables_of_kubernetes_are_explained_instead() -> None:
    sentences = complaints(
        SERVICE_HOST="10.0.0.1", SERVICE_PORT="80", PORT="tcp://10.0.0.1:80", PORT_80_TCP="tcp://10.0.0.1:80"
    )
    assert len(sentences) == 2
    assert "enableServiceLinks: false" in sentences[0]
    assert sentences[1].startswith("GATEWAY_PORT ")


def test_an_unknown_scheme_is_refused_with_the_known_ones() -> None:
    (sentence,) = complaints(STATE_URL="oracle:x")
    assert "sqlite:///path" in sentence
    (sentence,) = complaints(OBJECTS_URL="oracle:x")
    assert "file:" in sentence
    (sentence,) = complaints(BUS_URL="oracle:x")
    assert "memory:" in sentence


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"JWT_SECRET": SECRET, "JWT_PUBLIC_KEY": PEM}, ["GATEWAY_JWT_SECRET", "GATEWAY_JWT_PUBLIC_KEY"]),
        ({"JWT_SECRET": SECRET, "JWKS_URL": "https://x"}, ["GATEWAY_JWT_SECRET", "GATEWAY_JWKS_URL"]),
        ({"HOST": "0.0.0.0"}, ["GATEWAY_HOST", "GATEWAY_JWT_SECRET"]),  # noqa: S104 - refused
        ({"HOST": "::"}, ["GATEWAY_HOST", "GATEWAY_JWT_PUBLIC_KEY"]),
        ({"HOST": "gw.example.com"}, ["GATEWAY_HOST", "GATEWAY_JWKS_URL"]),
        ({"WORKERS": "2"}, ["GATEWAY_WORKERS", "GATEWAY_BUS_URL", "redis://"]),
        ({"WORKERS": "2", "BUS_URL": REDIS, "STATE_URL": "memory:"}, ["GATEWAY_WORKERS", "GATEWAY_STATE_URL"]),
        ({"WORKERS": "2", "BUS_URL": REDIS, "OBJECTS_URL": "memory:"}, ["GATEWAY_WORKERS", "GATEWAY_OBJECTS_URL"]),
        ({"UPLOAD_TTL_S": "10", "VIDEO_TTL_S": "9"}, ["GATEWAY_UPLOAD_TTL_S", "GATEWAY_VIDEO_TTL_S"]),
        ({"PONG_S": "10", "PING_S": "9"}, ["GATEWAY_PONG_S", "GATEWAY_PING_S"]),
        ({"VIEWED_KEEP_S": "10", "ENDED_KEEP_S": "9"}, ["GATEWAY_VIEWED_KEEP_S", "GATEWAY_ENDED_KEEP_S"]),
        ({**APNS, "APNS_KEY_ID": None}, ["GATEWAY_APNS_KEY_FILE", "GATEWAY_APNS_KEY_ID"]),
        ({**APNS, "APNS_TEAM_ID": None}, ["GATEWAY_APNS_KEY_FILE", "GATEWAY_APNS_TEAM_ID"]),
        ({**APNS, "APNS_TOPIC": None}, ["GATEWAY_APNS_KEY_FILE", "GATEWAY_APNS_TOPIC"]),
        ({**APNS, "APNS_CERT_FILE": __file__}, ["GATEWAY_APNS_KEY_FILE", "GATEWAY_APNS_CERT_FILE"]),
        ({"APNS_KEY_ID": "ABCDEFGHIJ"}, ["GATEWAY_APNS_KEY_ID", "GATEWAY_APNS_KEY_FILE"]),
        ({"APNS_TOPIC": "org.example.app"}, ["GATEWAY_APNS_TOPIC", "GATEWAY_APNS_CERT_FILE"]),
        ({"APNS_ENDPOINT": "https://x"}, ["GATEWAY_APNS_ENDPOINT", "GATEWAY_APNS_KEY_FILE"]),
        ({"APNS_CA_FILE": __file__}, ["GATEWAY_APNS_CA_FILE", "GATEWAY_APNS_KEY_FILE"]),
        ({"UPLOAD_EVENTS_URL": "sqs://queue"}, ["GATEWAY_UPLOAD_EVENTS_URL", "GATEWAY_OBJECTS_URL"]),
        ({"FCM_ENDPOINT": "https://x"}, ["GATEWAY_FCM_ENDPOINT", "GATEWAY_FCM_CREDENTIALS_FILE"]),
        ({"FCM_CA_FILE": __file__}, ["GATEWAY_FCM_CA_FILE", "GATEWAY_FCM_CREDENTIALS_FILE"]),
    ],
)
def test_what_cannot_work_together_is_refused(variables: dict[str, str | None], named: list[str]) -> None:
    (sentence,) = complaints(**{name: text for name, text in variables.items() if text is not None})
    for name in named:
        assert name in sentence


def test_many_processes_are_fine_with_a_bus_between_them() -> None:
    settings = load(WORKERS="4", BUS_URL=REDIS)
    assert settings.workers == 4
    assert not settings.bus_is_in_process


def test_a_public_address_is_fine_with_a_key() -> None:
    assert load(HOST="0.0.0.0", JWT_SECRET=SECRET).host == "0.0.0.0"  # noqa: S104
    assert load(HOST="gw.example.com", JWKS_URL="https://x").host == "gw.example.com"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)],  # noqa: S104
)
def test_loopback_is_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_arguments_go_before_the_environment_and_are_called_by_their_own_name() -> None:
    settings = Settings.load({"GATEWAY_PORT": "1", "GATEWAY_HOST": "::1"}, arguments={"PORT": "2"})
    assert settings.port == 2
    origins = {given.variable: given.origin for given in settings.given}
    assert origins["GATEWAY_PORT"] is Origin.COMMAND_LINE
    assert origins["GATEWAY_HOST"] is Origin.ENVIRONMENT
    assert origins["GATEWAY_WORKERS"] is Origin.DEFAULT
    with pytest.raises(ConfigError, match=r"^--port must be .*, not 'x'\.$"):
        Settings.load({}, arguments={"PORT": "x"})


def test_defaults_under_the_data_folder_follow_it() -> None:
    settings = load(DATA_DIR="/srv/gateway")
    assert settings.state_url == "sqlite:////srv/gateway/state.db"
    assert settings.objects_url == "file:/srv/gateway/objects"
    assert settings.secret_file == Path("/srv/gateway/jwt.secret")
    assert load(DATA_DIR="/srv/a b%").state_url == "sqlite:////srv/a%20b%25/state.db"


def test_secrets_show_nowhere() -> None:
    settings = load(JWT_SECRET=SECRET, OPERATOR_TOKEN="operator-token-0123")
    shown = repr(settings) + str(settings) + repr(settings.given)
    assert SECRET not in shown
    assert "operator-token-0123" not in shown
    hidden = {given.variable for given in settings.given if given.shown == "(hidden)"}
    assert hidden == {"GATEWAY_JWT_SECRET", "GATEWAY_OPERATOR_TOKEN"}


def test_no_complaint_repeats_a_secret() -> None:
    texts = {
        "JWT_SECRET": "hunter2\n",
        "OPERATOR_TOKEN": "hunter2",
        "JWT_PUBLIC_KEY": "-----BEGIN PRIVATE KEY-----hunter2",
        "JWKS_URL": "https://user:hunter2@x/",
        "PUBLIC_URL": "https://user:hunter2@x/",
    }
    assert "hunter2" not in str(complaints(**texts))


def test_settings_cannot_be_changed() -> None:
    settings: Any = load()
    with pytest.raises(AttributeError):
        settings.port = 1


def test_a_public_key_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text(PEM)
    assert load(JWT_PUBLIC_KEY=str(file)).jwt_public_key == PEM


def test_a_secret_is_made_up_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    settings = load(DATA_DIR=str(tmp_path / "new" / "data"))
    secret = settings.signing_secret()
    assert secret is not None
    assert len(secret) >= 32
    assert settings.signing_secret() == secret
    assert settings.secret_file is not None
    assert stat.S_IMODE(settings.secret_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.data_dir.stat().st_mode) == 0o700
    assert [path.name for path in settings.data_dir.iterdir()] == ["jwt.secret"]


def test_no_secret_is_made_up_where_a_key_is_set(tmp_path: Path) -> None:
    data_dir = str(tmp_path / "data")
    assert load(DATA_DIR=data_dir, JWT_SECRET=SECRET).signing_secret() == SECRET
    assert load(DATA_DIR=data_dir, JWKS_URL="https://x").signing_secret() is None
    assert load(DATA_DIR=data_dir, JWT_PUBLIC_KEY=PEM).signing_secret() is None
    assert not (tmp_path / "data").exists()


def test_all_who_make_up_a_secret_at_once_get_the_same(tmp_path: Path) -> None:
    for round_ in range(20):
        path = tmp_path / str(round_) / "jwt.secret"
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(made_up_secret, [path] * 8))) == 1
        assert [found.name for found in path.parent.iterdir()] == ["jwt.secret"]


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 40])
def test_a_broken_secret_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jwt.secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"jwt\.secret"):
        made_up_secret(path)
    assert path.read_bytes() == content


def test_a_secret_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jwt.secret"
    path.write_text(SECRET)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        made_up_secret(path)


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="GATEWAY_DATA_DIR"):
        made_up_secret(tmp_path / "file" / "jwt.secret")
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


def test_every_default_is_a_value_that_its_setting_takes() -> None:
    for setting in SETTINGS:
        if setting.default is not None:
            setting.read(setting.default, origin=Origin.DEFAULT)
        assert setting.doc.endswith(".")
        assert setting.unit == (
            "seconds" if setting.name.endswith("_S") else "bytes" if "BYTES" in setting.name else ""
        )


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ({}, 3600),
        ({"STATE_URL": "dynamodb://table"}, 86_400),
        ({"STATE_URL": "dynamodb://table", "SWEEP_FULL_S": "7"}, 7),
    ],
)
def test_everything_is_swept_less_often_where_reading_is_paid_for(given: dict[str, str], seconds: float) -> None:
    assert load(**given).full_sweep_s == seconds
