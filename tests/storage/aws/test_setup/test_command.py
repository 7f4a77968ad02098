"""`gateway setup`."""

import json
from pathlib import Path

import pytest

from gateway.cli import main
from tests.aws_servers import REGION
from tests.storage.aws.test_setup.places import ACCOUNT, Place, as_user, configure

Output = pytest.CaptureFixture[str]


@pytest.fixture
def settings(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of such a gateway."""
    configure(place, monkeypatch, tmp_path / "data")
    return tmp_path / "data"


def test_the_command_shows_first_and_then_does_it(place: Place, settings: Path, capsys: Output) -> None:
    before = place.state()
    assert main(["setup", "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert f"would make the folder {settings}\nwould make up the secret" in planned
    assert f"table {place.name}: would create it" in planned
    assert place.state() == before
    assert not settings.exists()

    assert main(["setup"]) == 0
    done = capsys.readouterr().out
    assert f"made the folder {settings}\n" in done
    assert f"documents: dynamodb://{place.name}?" in done
    told = json.loads(done[done.index("\n{\n") :])
    assert told["Statement"][0]["Resource"] == f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{place.name}"
    assert (settings / "jwt.secret").read_text() not in done

    assert main(["setup"]) == 0
    assert capsys.readouterr().out.count(": as it should be\n") == 12
    (rule,) = place.state("lifecycle")["lifecycle"]["Rules"]
    assert rule["Expiration"] == {"Days": 40}  # a quarter of a day, 30 days, a week and a day, rounded up, and one more


def test_the_command_prints_just_the_policy(place: Place, settings: Path, capsys: Output) -> None:
    assert main(["setup", "--policy"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["Statement"][0]["Resource"] == f"arn:aws:dynamodb:{REGION}:*:table/{place.name}"
    assert not settings.exists()


def test_the_command_has_no_policy_where_nothing_is_at_amazons(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Output
) -> None:
    monkeypatch.setenv("GATEWAY_DATA_DIR", str(tmp_path / "data"))
    assert main(["setup", "--policy"]) == 2
    assert capsys.readouterr().err == "gateway: Nothing is kept at Amazon's, so there are no rights to give.\n"
    assert main(["setup", "--dry-run"]) == 0
    assert not (tmp_path / "data").exists()


def test_the_command_says_what_went_wrong_in_a_sentence(
    place: Place, settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    as_user(monkeypatch, place.aws.user({"Effect": "Allow", "Action": "s3:*", "Resource": "*"}))
    assert main(["setup"]) == 2
    assert capsys.readouterr().err == (
        f"gateway: AWS refuses dynamodb:DescribeTable on the table {place.name}: these credentials lack the right.\n"
    )


def test_objects_at_amazons_go_with_documents_elsewhere(
    place: Place, settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setenv("GATEWAY_STATE_URL", f"sqlite:///{settings}/state.db")
    monkeypatch.delenv("GATEWAY_UPLOAD_EVENTS_URL")
    assert main(["setup"]) == 0
    done = capsys.readouterr().out
    assert f"bucket {place.name}: create it" in done
    assert "dynamodb" not in done
    assert place.state("table")["table"] == "ResourceNotFoundException"
    assert (settings / "state.db").exists()
