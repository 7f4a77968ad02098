"""Setting up a bucket."""

import re
from dataclasses import replace

import pytest
from botocore.config import Config

from storage.aws.setup import NotSetUp, access
from tests.storage.aws.test_setup.places import Place


def test_the_rules_of_the_bucket_concern_what_is_ours(place: Place) -> None:
    place.only("objects", "events")
    place.run()
    state = place.state("cors", "lifecycle", "notification", "queue")
    (cors,) = state["cors"]["CORSRules"]
    assert cors["AllowedOrigins"] == ["https://a.example"]
    assert set(cors["AllowedMethods"]) == {"PUT", "GET"}
    assert set(cors["AllowedHeaders"]) == {"content-type", "if-none-match", "x-amz-checksum-sha256", "range"}
    assert set(cors["ExposeHeaders"]) == {"ETag", "Content-Range", "Accept-Ranges"}
    (rule,) = state["lifecycle"]["Rules"]
    assert (rule["Filter"], rule["Expiration"], rule["Status"]) == ({"Prefix": "live/"}, {"Days": 40}, "Enabled")
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
    (notification,) = state["notification"]["QueueConfigurations"]
    assert notification["Events"] == ["s3:ObjectCreated:*"]
    assert notification["QueueArn"] == state["queue"]["Attributes"]["QueueArn"]
    assert all(rule.get("ID", rule.get("Id")).startswith("gateway-") for rule in (cors, rule, notification))


def test_without_a_prefix_the_whole_bucket_is_ours(place: Place) -> None:
    place.only("objects", "events")
    assert place.wanted.objects
    place.change(objects=replace(place.wanted.objects, prefix=""))
    place.run()
    assert not place.lines()
    state = place.state("lifecycle", "notification")
    assert state["lifecycle"]["Rules"][0]["Filter"] == {"Prefix": ""}
    assert "Filter" not in state["notification"]["QueueConfigurations"][0]


def test_a_bucket_in_us_east_1_is_made_without_naming_it(place: Place) -> None:
    place.only("objects")
    assert place.wanted.objects
    place.change(objects=replace(place.wanted.objects, region="us-east-1"))
    place.run()
    assert place.state("location")["location"].get("LocationConstraint") is None
    assert not place.lines()


def test_origins_that_are_taken_away_take_our_rule_with_them(place: Place) -> None:
    place.only("objects")
    place.run()
    place.change(origins=("https://b.example", "https://c.example"))
    pages = "https://b.example, https://c.example"
    assert place.lines() == [f"bucket {place.name}, CORS: put the rule right: let pages of {pages} put and get videos"]
    place.change(origins=())
    assert place.lines() == [f"bucket {place.name}, CORS: let no pages put and get videos"]
    assert place.state("cors")["cors"] == "NoSuchCORSConfiguration"
    assert not place.lines()


def test_versioning_is_told_of_and_left(place: Place) -> None:
    place.only("objects")
    place.run()
    place.s3.put_bucket_versioning(Bucket=place.name, VersioningConfiguration={"Status": "Enabled"})
    (said,) = place.lines()
    assert "videos that are deleted remain as old versions" in said
    assert place.state("versioning")["versioning"]["Status"] == "Enabled"


def test_a_rule_of_which_another_service_forgets_a_part_is_as_it_should_be(place: Place) -> None:
    place.only("objects")
    place.run()
    (rule,) = place.state("lifecycle")["lifecycle"]["Rules"]
    del rule["AbortIncompleteMultipartUpload"]
    place.s3.put_bucket_lifecycle_configuration(Bucket=place.name, LifecycleConfiguration={"Rules": [rule]})
    assert not place.lines()


def test_rules_under_a_very_long_prefix_have_an_id_that_s3_takes(place: Place) -> None:
    place.only("objects")
    assert place.wanted.objects
    place.change(objects=replace(place.wanted.objects, prefix="a" * 300))
    place.run()
    (rule,) = place.state("lifecycle")["lifecycle"]["Rules"]
    assert re.fullmatch("gateway-expire:[0-9a-f]{64}", rule["ID"])
    assert not place.lines()


def test_a_bucket_of_somebody_else_is_a_sentence(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.only("objects")
    place.run()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "111122223333")  # ministack takes an account for a key
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(NotSetUp, match="or the bucket is somebody else"):
        place.run()


def test_a_bucket_in_another_region_is_a_sentence(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.only("objects")
    place.run()
    assert place.wanted.objects
    elsewhere = replace(place.wanted.objects, endpoint=None, region="eu-west-1")
    place.change(objects=elsewhere)
    monkeypatch.setenv("AWS_ENDPOINT_URL", place.aws.endpoint)
    monkeypatch.setattr(access, "client_config", lambda _: Config(s3={"addressing_style": "path"}))
    with pytest.raises(NotSetUp, match=r"is not in eu-west-1 but in eu-central-1: add \?region=eu-central-1"):
        place.run(dry=True)
