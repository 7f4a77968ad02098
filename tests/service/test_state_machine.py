"""The use cases together, under every schedule of calls, crashes, faults and time that Hypothesis can think of.

`GATEWAY_TEST_EXAMPLES` says how many histories are tried: a few hundred where it is not set, any number to search on.
"""

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service import world

EXAMPLES = int(os.environ.get("GATEWAY_TEST_EXAMPLES", "300"))

WORLDS = st.builds(world.setting_of, st.integers(0, 3), st.integers(0, 3), st.integers(0, 29))
STEPS = st.tuples(st.integers(0, world.KINDS - 1), st.integers(0, 999), st.integers(0, 999))
SCHEDULES = st.lists(STEPS, min_size=40, max_size=200)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(setting=WORLDS, schedule=SCHEDULES)
def test_whatever_happens_nothing_answered_is_undone_and_in_the_end_everyone_agrees(
    setting: world.Setting, schedule: list[world.Step]
) -> None:
    world.run(setting, schedule)
