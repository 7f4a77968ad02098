"""URLs of tables, buckets and queues: what they may say, and the sentence for what they may not."""

import re

import pytest

from storage.aws.url import DEFAULT_SHARDS, MOST_SHARDS, AwsUrl

ANY = "must be dynamodb://table or s3://bucket or sqs://queue"
PREFIX = "must be s3://bucket/prefix, with a prefix of letters, digits and . _ - / (no part is . or ..)"
REGION = "must have a region such as eu-central-1"
SHARDS = f"must have shards from 1 to {MOST_SHARDS}"
ENDPOINT = "must have an endpoint such as https://host:9000"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("dynamodb://gateway", AwsUrl("dynamodb", "gateway")),
        ("dynamodb://Gate_way.1-x", AwsUrl("dynamodb", "Gate_way.1-x")),
        ("dynamodb://" + "t" * 255, AwsUrl("dynamodb", "t" * 255)),
        ("dynamodb://gateway/", AwsUrl("dynamodb", "gateway")),
        ("dynamodb://gateway?", AwsUrl("dynamodb", "gateway")),
        ("dynamodb://gateway?shards=1", AwsUrl("dynamodb", "gateway", shards=1)),
        ("dynamodb://gateway?shards=256", AwsUrl("dynamodb", "gateway", shards=256)),
        ("s3://videos", AwsUrl("s3", "videos")),
        ("S3://videos", AwsUrl("s3", "videos")),
        ("s3://www.videos-1.example", AwsUrl("s3", "www.videos-1.example")),
        ("s3://" + "b" * 63, AwsUrl("s3", "b" * 63)),
        ("s3://videos/a", AwsUrl("s3", "videos", prefix="a")),
        ("s3://videos/a/B_1/c-d.e/", AwsUrl("s3", "videos", prefix="a/B_1/c-d.e")),
        ("s3://videos/.a/..b/c..", AwsUrl("s3", "videos", prefix=".a/..b/c..")),
        ("sqs://gateway-uploads_1", AwsUrl("sqs", "gateway-uploads_1")),
        ("sqs://" + "q" * 80, AwsUrl("sqs", "q" * 80)),
        ("sqs://uploads?region=us-gov-west-1", AwsUrl("sqs", "uploads", region="us-gov-west-1")),
        (
            "dynamodb://gateway?region=eu-central-1&endpoint=http://127.0.0.1:8000&shards=3",
            AwsUrl("dynamodb", "gateway", region="eu-central-1", endpoint="http://127.0.0.1:8000", shards=3),
        ),
        (
            "s3://videos/a?region=auto&endpoint=http://minio:9000&public_endpoint=https%3A%2F%2Fvideos.example%2F",
            AwsUrl("s3", "videos", "a", "auto", "http://minio:9000", public_endpoint="https://videos.example"),
        ),
    ],
)
def test_a_url_says_what_and_where(url: str, expected: AwsUrl) -> None:
    assert AwsUrl.parse(url) == expected


def test_what_a_url_does_not_say_is_left_to_the_configuration() -> None:
    url = AwsUrl.parse("dynamodb://gateway")
    assert (url.region, url.endpoint, url.public_endpoint) == (None, None, None)
    assert (url.prefix, url.shards) == ("", DEFAULT_SHARDS)


@pytest.mark.parametrize(
    ("given", "endpoint"),
    [
        ("http://host", "http://host"),
        ("HTTPS://host/", "https://host"),
        ("https://host:9000", "https://host:9000"),
        ("http://my_host-1.example:65535", "http://my_host-1.example:65535"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1"),
        ("http://[::1]:9000", "http://[::1]:9000"),
        ("https://[2001:DB8::1]", "https://[2001:db8::1]"),
        # Clients write the header that is signed without the port that goes without saying, and in lower case.
        ("https://Videos.Example:443", "https://videos.example"),
        ("http://videos.example:80", "http://videos.example"),
        ("https://videos.example:", "https://videos.example"),
        ("https://videos.example:80", "https://videos.example:80"),
        ("http://videos.example:443", "http://videos.example:443"),
    ],
)
def test_an_endpoint_is_written_as_the_header_of_a_request_names_it(given: str, endpoint: str) -> None:
    assert AwsUrl.parse(f"s3://videos?endpoint={given}").endpoint == endpoint
    assert AwsUrl.parse(f"s3://videos?public_endpoint={given}").public_endpoint == endpoint


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", ANY),
        ("videos", ANY),
        ("http://videos", ANY),
        ("redis://:secret@host", ANY),
        ("s3://[videos", ANY),
        ("s3://key:secret@vide℀s", ANY),  # the library says what it does not like about this, and repeats it
        ("s3://key:secret@videos", "must be s3://bucket without credentials: they come from the AWS configuration"),
        ("sqs://key:secret@uploads", "must be sqs://queue without credentials: they come from the AWS configuration"),
        ("s3://key:secret", "must be s3://bucket, with the name of a bucket"),
        ("s3://key:sec/secret@videos", "must be s3://bucket, with the name of a bucket"),
        ("s3:videos", "must be s3://bucket, with the name of a bucket"),
        ("s3:///videos", "must be s3://bucket, with the name of a bucket"),
        ("s3://vi", "must be s3://bucket, with the name of a bucket"),
        ("s3://" + "b" * 64, "must be s3://bucket, with the name of a bucket"),
        ("s3://Videos", "must be s3://bucket, with the name of a bucket"),
        ("s3://my_videos", "must be s3://bucket, with the name of a bucket"),
        ("s3://videos-", "must be s3://bucket, with the name of a bucket"),
        ("s3://videos:9000", "must be s3://bucket, with the name of a bucket"),
        ("s3://videos#secret", "must be s3://bucket, with the name of a bucket"),
        ("dynamodb://ta", "must be dynamodb://table, with the name of a table"),
        ("dynamodb://" + "t" * 256, "must be dynamodb://table, with the name of a table"),
        ("dynamodb://täble", "must be dynamodb://table, with the name of a table"),
        ("sqs://", "must be sqs://queue, with the name of a queue"),
        ("sqs://" + "q" * 81, "must be sqs://queue, with the name of a queue"),
        ("sqs://uploads.fifo", "must be sqs://queue, with the name of a queue"),
        ("dynamodb://gateway/prefix", "must be dynamodb://table, without a path"),
        ("sqs://uploads/123", "must be sqs://queue, without a path"),
        ("s3://videos/a//b", PREFIX),
        ("s3://videos/a b", PREFIX),
        ("s3://videos/a%20b", PREFIX),
        ("s3://videos/ä", PREFIX),
        # Clients would take these away from the path that was signed.
        ("s3://videos/.", PREFIX),
        ("s3://videos/../a", PREFIX),
        ("s3://videos/a/./b", PREFIX),
        ("s3://videos/a/..", PREFIX),
        ("s3://videos?region=", REGION),
        ("s3://videos?region=e", REGION),
        ("s3://videos?region=EU", REGION),
        ("s3://videos?region=evil.example/", REGION),
        ("dynamodb://gateway?shards=0", SHARDS),
        ("dynamodb://gateway?shards=257", SHARDS),
        ("dynamodb://gateway?shards=-1", SHARDS),
        ("dynamodb://gateway?shards=%2B1", SHARDS),
        ("dynamodb://gateway?shards=", SHARDS),
        ("dynamodb://gateway?shards=%D9%A3", SHARDS),
        ("dynamodb://gateway?shards=" + "9" * 5000, SHARDS),
        ("s3://videos?shards=2", "must have no parameters but region, endpoint, public_endpoint, each once"),
        ("dynamodb://gateway?public_endpoint=http://a", "must have no parameters but region, endpoint, shards"),
        ("sqs://uploads?secret=secret", "must have no parameters but region, endpoint, each once"),
        ("sqs://uploads?region=eu-west-1&region=eu-west-2", "must have no parameters but region, endpoint, each once"),
        ("sqs://uploads?secret", "must have no parameters but region, endpoint, each once"),
        ("sqs://uploads?&", "must have no parameters but region, endpoint, each once"),
        ("s3://videos?public_endpoint=host", "must have a public_endpoint such as https://host:9000"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence_without_the_password(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}") as refused:
        AwsUrl.parse(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "host:9000",
        "//host",
        "ftp://host",
        "http://",
        "http://:9000",
        "http://host:0",
        "http://host:65536",
        "http://host:secret",
        "http://key:secret@host",
        "http://@host",
        "http://key:secret@h℀st",
        "http://host/secret",
        "http://host?secret",
        "http://host%23secret",
        "http://[::1",
        "http://[host]",
        "http://ho st",
        "http://ho%00st",
        "http://höst",
        "http://a..b",
        "http://" + "h" * 64,
    ],
)
def test_an_endpoint_that_is_none_is_refused_without_being_repeated(endpoint: str) -> None:
    with pytest.raises(ValueError, match=f"^{ENDPOINT}$") as refused:
        AwsUrl.parse(f"s3://videos?endpoint={endpoint.replace('?', '%3F')}")
    assert "secret" not in str(refused.value)
