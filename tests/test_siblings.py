import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import pytest
from prometheus_client import Gauge, Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway import siblings
from gateway.metrics import Metrics
from gateway.siblings import Siblings, merged
from tests.running import within

NAMES = ("0", "1", "worker")
ODD = 'a "quoted" name{of="what"} 1\\2, and\na line # HELP more'


def counted(**calls: int) -> Metrics:
    """Metrics that are not all 0."""
    metrics = Metrics()
    for call, number in calls.items():
        metrics.calls.labels(call, 200).inc(number)
        metrics.call_seconds.labels(call).observe(0.1)
    return metrics


def families(text: bytes) -> dict[str, Metric]:
    """What Prometheus would read. None may come twice, nor what is said of one."""
    heads = [tuple(line.split(b" ")[:3]) for line in text.splitlines() if line.startswith(b"# ")]
    assert len(set(heads)) == len(heads)
    found = list(text_string_to_metric_families(text.decode()))
    assert len({family.name for family in found}) == len(found)
    return {family.name: family for family in found}


def samples(text: bytes) -> Mapping[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, by its name and labels."""
    read = [sample for family in families(text).values() for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in read}
    assert len(found) == len(read)
    return found


@contextlib.asynccontextmanager
async def all_listening(folder: Path, told: Mapping[str, Callable[[], bytes]]) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for name, exposition in told.items():
            await stack.enter_async_context(Siblings(folder, name, NAMES).listening(exposition))
        yield


@contextlib.asynccontextmanager
async def answering(folder: Path, name: str, *parts: bytes) -> AsyncIterator[None]:
    """A process that hands this out, and does not come to an end."""
    writers: list[asyncio.StreamWriter] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.writelines(parts)

    async with await asyncio.start_unix_server(answer, folder / name):
        yield
        for writer in writers:
            writer.transport.abort()


# --- Put together


def test_every_sample_of_every_process_is_there_with_the_name_of_its_process() -> None:
    texts = {"0": counted(poll=1, sync=2).exposition(), "1": counted(poll=3).exposition(), "worker": b""}
    texts["worker"] = counted().exposition()
    expected = {
        (name, labels | {("process", process)}): value
        for process, text in texts.items()
        for (name, labels), value in samples(text).items()
    }
    assert samples(merged(texts)) == expected
    assert len(expected) > 100


def test_every_family_is_there_once_with_its_type_and_what_it_means() -> None:
    one, two = counted(poll=1).exposition(), counted(sync=1).exposition()
    found = families(merged({"0": one, "1": two}))
    assert {(name, family.type, family.documentation) for name, family in found.items()} == {
        (name, family.type, family.documentation) for name, family in families(one).items()
    }


def test_what_stands_in_a_label_does_not_matter() -> None:
    metrics = Metrics()
    Gauge("gateway_odd", "Odd: {a} \\ b\nc", ["what"], registry=metrics.registry).labels(ODD).set(7)
    found = families(merged({"0": metrics.exposition(), "1": metrics.exposition()}))["gateway_odd"]
    assert [(sample.labels, sample.value) for sample in found.samples] == [
        ({"process": process, "what": ODD}, 7) for process in ("0", "1")
    ]


def test_a_family_that_one_process_alone_has_is_there() -> None:
    metrics = Metrics()
    Gauge("gateway_special", "Special", registry=metrics.registry).set(1)
    found = families(merged({"0": counted().exposition(), "1": metrics.exposition()}))["gateway_special"]
    assert [sample.labels for sample in found.samples] == [{"process": "1"}]


# --- Asked for


@pytest.mark.parametrize("asked", NAMES)
async def test_whoever_is_asked_tells_of_all_in_their_order(tmp_path: Path, asked: str) -> None:
    those = {name: counted(poll=number) for number, name in enumerate(NAMES, 1)}
    async with all_listening(tmp_path, {name: metrics.exposition for name, metrics in those.items()}):
        text = await within(Siblings(tmp_path, asked, NAMES).exposition(those[asked]))
    calls = [sample for sample in families(text)["gateway_calls"].samples if sample.name == "gateway_calls_total"]
    assert [(sample.labels["process"], sample.value) for sample in calls] == [("0", 1), ("1", 2), ("worker", 3)]
    assert silent(text, NAMES) == [0, 0, 0]


def silent(text: bytes, names: Sequence[str]) -> list[float]:
    """How many each says that it had to leave out."""
    found = samples(text)
    return [found["gateway_siblings_silent_total", frozenset({("process", name)})] for name in names]


async def test_one_that_is_not_there_is_left_out_and_counted(tmp_path: Path) -> None:
    async with all_listening(tmp_path, {"0": counted().exposition, "1": counted().exposition}):
        mine = counted()
        assert silent(await within(Siblings(tmp_path, "0", NAMES).exposition(mine)), ["0", "1"]) == [1, 0]
        assert silent(await within(Siblings(tmp_path, "0", NAMES).exposition(mine)), ["0", "1"]) == [2, 0]


@pytest.mark.parametrize("parts", [(), (b"# HELP gateway_calls_total HTTP calls answered\n# TYPE gate",)])
async def test_one_that_hangs_is_left_out_after_the_time_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[bytes, ...]
) -> None:
    monkeypatch.setattr(siblings, "ANSWER_S", 0.1)
    async with all_listening(tmp_path, {"1": counted().exposition}), answering(tmp_path, "worker", *parts):
        begun = time.monotonic()
        assert silent(await within(Siblings(tmp_path, "0", NAMES).exposition(counted())), ["0", "1"]) == [1, 0]
        assert time.monotonic() - begun >= 0.1


async def test_one_that_fails_is_left_out_at_once(tmp_path: Path) -> None:
    errors: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context.get("exception")))
    try:
        async with all_listening(tmp_path, {"1": lambda: b"1" * (1 // 0), "worker": counted().exposition}):
            begun = time.monotonic()
            text = await within(Siblings(tmp_path, "0", NAMES).exposition(counted()))
            assert time.monotonic() - begun < siblings.ANSWER_S
    finally:
        loop.set_exception_handler(None)
    assert silent(text, ["0", "worker"]) == [1, 0]
    assert [type(error) for error in errors] == [ZeroDivisionError]


async def test_one_takes_the_place_of_one_that_was_killed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "1"))  # its file stays
    async with all_listening(tmp_path, {"1": counted(poll=5).exposition}):
        text = await within(Siblings(tmp_path, "0", ("0", "1")).exposition(counted()))
    [sample] = families(text)["gateway_calls"].samples
    assert (sample.labels["process"], sample.value) == ("1", 5)


async def test_nothing_is_left_behind_once_the_last_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir()
    one, other = Siblings(folder, "0", NAMES), Siblings(folder, "1", NAMES)
    async with one.listening(counted().exposition):
        async with other.listening(counted().exposition):
            pass
        other.tidy_up()
        assert [path.name for path in folder.iterdir()] == ["0"]
    one.tidy_up()
    assert not folder.exists()
