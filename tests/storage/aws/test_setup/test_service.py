"""What stands in the way of setting up is told in sentences."""

from dataclasses import replace

import pytest

from storage.aws.setup import NotSetUp, access
from storage.aws.url import AwsUrl
from tests.aws_servers import REGION
from tests.redis_servers import free_port
from tests.storage.aws.test_setup.places import Place


def test_without_credentials_it_says_how_to_give_some(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.only("documents")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(NotSetUp, match="there are no AWS credentials: set AWS_PROFILE"):
        place.run()


@pytest.mark.parametrize("kept", ["documents", "objects"])
def test_wrong_credentials_are_a_sentence(place: Place, monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    place.only(kept)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    with pytest.raises(NotSetUp, match="does not take the credentials") as told:
        place.run()
    assert "a-wrong-secret" not in str(told.value)


def test_without_a_region_it_says_where_to_set_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.only("documents")
    assert place.wanted.documents
    monkeypatch.delenv("AWS_REGION")
    place.change(documents=replace(place.wanted.documents, region=None))
    with pytest.raises(NotSetUp, match="no AWS region is configured"):
        place.run()


def test_a_profile_that_is_not_there_is_a_sentence(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(NotSetUp, match="nobody"):
        place.run()


def test_an_endpoint_that_does_not_answer_is_a_sentence(place: Place) -> None:
    place.only("documents")
    dead = AwsUrl.parse(f"dynamodb://videos?region={REGION}&endpoint=http://127.0.0.1:{free_port()}")
    place.change(documents=dead)
    with pytest.raises(NotSetUp, match=r"cannot reach http://127\.0\.0\.1:\d+ for the table videos"):
        place.run(dry=True)


def test_configured_endpoints_are_ignored_as_the_gateway_ignores_them(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", place.aws.endpoint)
    client = access.Access().client(AwsUrl.parse("dynamodb://videos"), REGION)
    assert client.meta.endpoint_url == f"https://dynamodb.{REGION}.amazonaws.com"
