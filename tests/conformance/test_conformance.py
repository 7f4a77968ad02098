"""Both clients of the project do what is right in bad weather, and clients that do not are found out."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from tests.conformance import story
from tests.conformance.log import Log
from tests.conformance.plan import Deed, Fault, Happening, Plan, plan_of
from tests.conformance.witness import Finding, Kind
from tests.web.node import NODE

SECONDS = 3.0
TRIES = 3
ANN, BOB = "ann/phone", "bob/phone"
PYTHON_CLIENT = (sys.executable, "-m", "tests.conformance.python_client")
JAVASCRIPT_CLIENT = (str(NODE), str(Path(__file__).with_name("javascript_client.js")))
BROKEN_CLIENT = (sys.executable, "-m", "tests.conformance.broken_client")

FLAWS = {
    "drops_a_status": (Kind.LISTS, Fault.LATE, 0.1),
    "applies_older_packets": (Kind.BACKWARDS, Fault.OVERTAKEN, 1.0),
    "acknowledges_too_much": (Kind.ACKNOWLEDGED, Fault.LATE, 0.1),
    "never_pauses": (Kind.NO_PAUSE, Fault.LOST, 1.0),
    "comes_back_too_soon": (Kind.TOO_SOON, Fault.UNAVAILABLE, 0.5),
    "forgets_its_record": (Kind.LOST, Fault.LOST, 1.0),
}


async def found(plan: Plan, command: Sequence[str], folder: Path, settle_s: float = story.SETTLE_S) -> list[Finding]:
    """What is found in a story, which is shown; it is told again where the machine had no time for it."""
    for number in range(TRIES):
        log = Log()
        findings = await story.tell(plan, command, folder / f"{plan.seed}-{number}", log, settle_s=settle_s)
        sys.stdout.write("\n".join([*log.lines, ""]))
        if Kind.TOO_BUSY not in {finding.kind for finding in findings}:
            return findings
    raise AssertionError("the machine had no time for a story, again and again")


@pytest.mark.parametrize(
    ("command", "seeds"),
    [(PYTHON_CLIENT, range(3)), (JAVASCRIPT_CLIENT, range(3, 6))],
    ids=["python", "javascript"],
)
async def test_a_good_client_does_what_is_right_in_bad_weather(
    tmp_path: Path, command: Sequence[str], seeds: range
) -> None:
    plans = [plan_of(seed, SECONDS) for seed in seeds]
    assert await asyncio.gather(*(found(plan, command, tmp_path) for plan in plans)) == [[]] * len(plans)


def a_day(fault: Fault, rate: float) -> Plan:
    """Ann sends Bob some videos, he views some, she is killed; and one kind of fault."""
    sends = [Happening(at_s, Deed.SEND, ANN, f"send:{at_s}") for at_s in (0.0, 0.7, 1.4, 2.5)]
    views = [Happening(at_s, Deed.VIEW, BOB, f"view:{at_s}") for at_s in (0.6, 1.2, 1.8, 2.4, 2.9, 3.3)]
    happenings = (*sends, *views, Happening(2.6, Deed.KILL, ANN, "kill"))
    return Plan(1, 3.5, (ANN, BOB), 1, frozenset({fault}), rate, happenings)


@pytest_asyncio.fixture(scope="module")
async def broken(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Sequence[Finding]]:
    """What is found with each broken client; all are tried at the same time."""

    async def tried(flaw: str, fault: Fault, rate: float) -> Sequence[Finding]:
        return await found(a_day(fault, rate), (*BROKEN_CLIENT, flaw), tmp_path_factory.mktemp(flaw), settle_s=3)

    trying = [tried(flaw, fault, rate) for flaw, (_, fault, rate) in FLAWS.items()]
    return dict(zip(FLAWS, await asyncio.gather(*trying), strict=True))


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_client_that_is_broken_is_found_out(broken: Mapping[str, Sequence[Finding]], flaw: str) -> None:
    kind, _, _ = FLAWS[flaw]
    assert kind in {finding.kind for finding in broken[flaw]}
