"""What a load test may be asked for."""

import resource

import pytest

from scripts.loadtest.options import MIX, Kind, Refused, check_descriptors, descriptors, mix_of, parsed, shares
from scripts.loadtest.process import kinds_of


@pytest.mark.parametrize("address", ["http://192.0.2.1:8000", "https://10.0.0.1", "http://no-such-host.invalid"])
def test_what_is_not_on_this_machine_is_refused(address: str) -> None:
    with pytest.raises(Refused, match="--anywhere"):
        parsed([address])


def test_anywhere_is_allowed_on_request() -> None:
    assert parsed(["http://192.0.2.1:8000", "--anywhere"]).address == "http://192.0.2.1:8000"


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8000/", "http://127.9.9.9:1", "http://localhost:8000", "http://[::1]:80"]
)
def test_loopback_is_allowed(address: str) -> None:
    assert parsed([address]).address == address.rstrip("/")


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(Refused, match="no address of a gateway"):
        parsed([address])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["http://127.0.0.1:1", "--restart", "1"], "--restart-command"),
        (["http://127.0.0.1:1", "--workers", "2"], "--workers"),
        (["http://127.0.0.1:1", "--set", "DRAIN_S=1"], "--set"),
        (["--phones", "3", "--processes", "2"], "two phones"),
        (["--seconds", "5", "--storm", "6"], "after the end"),
        (["--pid", "999999999"], "--pid"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: list[str], sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        parsed(arguments)


@pytest.mark.parametrize("arguments", [["--phones", "x"], ["--downloads", "2"], ["--mix", "x=1"], ["--set", "x"]])
def test_nonsense_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_mix_is_read() -> None:
    assert mix_of("foreground=3, half-open=1,asleep=0") == {Kind.FOREGROUND: 3.0, Kind.HALF_OPEN: 1.0}


@pytest.mark.parametrize(
    "text", ["", "foreground", "foreground=x", "foreground=-1", "foreground=1,foreground=2", "asleep=1"]
)
def test_a_mix_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(Exception, match=r"KIND=SHARE|once|nobody sends"):
        mix_of(text)


def test_phones_are_shared_out_by_the_mix() -> None:
    kinds = shares(MIX, 1000)
    assert {kind: kinds.count(kind) for kind in Kind} == {kind: 10 * share for kind, share in MIX.items()}


def test_every_process_has_a_sender() -> None:
    options = parsed(["--phones", "20", "--processes", "10", "--mix", "foreground=1,background=99"])
    kinds = kinds_of(options)
    assert all(any(kind.sends for kind in kinds[first::10]) for first in range(10))


def test_more_phones_than_descriptors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    options = parsed(["--phones", "3000", "--mix", "foreground=1"])
    with pytest.raises(Refused, match=r"--processes (\d+)") as refused:
        check_descriptors(options, arrivals=False)
    processes = str(refused.value).partition("--processes ")[2].partition(",")[0]
    check_descriptors(parsed(["--phones", "3000", "--mix", "foreground=1", "--processes", processes]), arrivals=False)


def test_pushes_that_the_console_shows_need_descriptors_too() -> None:
    options = parsed(["--phones", "100", "--mix", "foreground=1,background=1"])
    assert descriptors(options, arrivals=True) == descriptors(options, arrivals=False) + 50


def test_more_sockets_than_a_gateway_takes_are_refused() -> None:
    with pytest.raises(Refused, match="--workers 3"):
        parsed(["--phones", "30000", "--mix", "foreground=1", "--processes", "2", "--workers", "2"])
