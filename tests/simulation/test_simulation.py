"""What the simulation says of the product, that it says it again, and that it would say so if it were otherwise."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulation import mutants, world
from tests.simulation.plan import Happening, plan_of
from tests.simulation.shrink import shrink

ROOT = Path(__file__).parents[2]


def simulated(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """What `scripts/simulate` runs."""
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_whatever_happens_no_status_is_lost_or_wrong_and_in_the_end_everybody_agrees(
    stories: Callable[[], tuple[int, str]],
) -> None:
    """`GATEWAY_TEST_SEEDS` says how many stories are told."""
    code, said = stories()
    assert code == 0, said


def test_a_seed_tells_the_same_story_again_in_any_process() -> None:
    one, other = (simulated("--story", "5", hash_seed=seed) for seed in ("1", "2"))
    assert one.returncode == 0, one.stderr
    assert len(one.stdout.splitlines()) > 100
    assert one.stdout == other.stdout


def test_a_story_that_goes_wrong_is_shortened_to_what_matters() -> None:
    plan = plan_of(3)
    needed = {plan.happenings[2], plan.happenings[-1]}
    tried: list[tuple[Happening, ...]] = []

    def still(shorter: object) -> bool:
        happenings = getattr(shorter, "happenings")  # noqa: B009
        tried.append(happenings)
        return needed <= set(happenings)

    short = shrink(plan, still)
    assert set(short.happenings) == needed
    assert len(tried) < 200


def test_every_mutant_still_fits_the_code() -> None:
    for mutant in mutants.MUTANTS:
        assert (ROOT / mutant.path).read_text().count(mutant.old) == 1, mutant.name
    assert len({mutant.name for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)


@pytest.mark.parametrize("name", ["what a packet does not list is complete"])
def test_a_mutant_is_found_and_its_story_told(name: str) -> None:
    [mutant] = [mutant for mutant in mutants.MUTANTS if mutant.name == name]
    verdict = mutants.tried(mutant, 200)
    assert verdict.found, str(verdict)


def test_a_story_of_which_everything_is_left_out_is_well() -> None:
    plan = plan_of(1)
    outcome = world.run(type(plan)(plan.seed, plan.setting, ()))
    assert outcome.violation is None, outcome.story()
