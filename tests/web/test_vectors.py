"""The test vectors, run by the core of the client for JavaScript in Node; and walks that no file has."""

import os
import re
import subprocess
from pathlib import Path

from tests.client import vectors
from tests.web.node import HERE, NODE

SEEDS = range(1000, 1060)
"""Of walks for both cores, besides those that are kept."""

STEPS = 400
"""In each of these walks."""


def run(script: str, count: int | None = None, **environment: str) -> None:
    """Run tests in Node: all pass, so many as there are to be."""
    node = subprocess.run(
        [NODE, "--test", "--test-reporter=tap", HERE / script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    output = f"{node.stdout}\n{node.stderr}"
    found = {name: int(number) for name, number in re.findall(r"^# (tests|pass) (\d+)$", node.stdout, re.MULTILINE)}
    assert node.returncode == 0, output
    assert found["pass"] == found["tests"] == (count or found["tests"]) > 0, output


def run_vectors(folder: Path) -> None:
    """Run the vectors in a folder: none is left out."""
    run("vectors.test.js", len(list(folder.rglob("*.json"))), VECTORS=str(folder))


def test_the_core_for_javascript_passes_every_vector() -> None:
    run_vectors(vectors.HERE)


def test_both_cores_go_the_same_way_whatever_happens(tmp_path: Path) -> None:
    for seed in SEEDS:
        story = vectors.walk(seed, steps=STEPS)
        vectors.write(tmp_path, [(f"{seed}.json", vectors.written(story, "steps"))])
    run_vectors(tmp_path)


def test_the_core_for_javascript_is_made_as_it_says() -> None:
    run("core.test.js")
