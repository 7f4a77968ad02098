"""The core against a gateway in miniature, under every loss, delay, repetition and death that Hypothesis can think of.

`GATEWAY_TEST_EXAMPLES` says how many histories are tried: some hundred where it is not set, any number to search on.
"""

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.client import model_gateway

EXAMPLES = int(os.environ.get("GATEWAY_TEST_EXAMPLES", "200"))

STEPS = st.tuples(st.integers(0, model_gateway.KINDS - 1), st.integers(0, 999), st.integers(0, 999))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(schedule=st.lists(STEPS, min_size=30, max_size=200))
def test_whatever_happens_nothing_shown_is_untrue_and_in_the_end_everything_is_said_and_told_once(
    schedule: list[model_gateway.Step],
) -> None:
    model_gateway.run(schedule)
