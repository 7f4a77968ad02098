"""The page, and what it is made of."""

import math
import re

from scripts.loadtest.course import Course, cores
from scripts.loadtest.histogram import Histogram
from scripts.loadtest.options import parsed
from scripts.loadtest.page import page
from scripts.loadtest.plots import Chart, Line, svg
from scripts.loadtest.report import text, verdict
from scripts.loadtest.tally import Count, Fault, News, Tally
from scripts.loadtest.usage import Usage, of_metrics
from tests.load.pages import check_page


def a_course() -> Course:
    """Of three seconds, with something of all."""
    course = Course(parsed(["--phones", "10", "--seconds", "5"]), "http://127.0.0.1:1", began_s=100.0, ended_s=103.0)
    for second in range(3):
        tally = Tally()
        tally.count(Count.DONE)
        for ms in range(1, 101):
            tally.took(News.RECIPIENT, ms / 1000)
        sample = tally.take(100.5 + second)
        sample.usage = Usage(second * 0.25, 1 << 20)
        course.add(0, sample)
        course.used(100.5 + second, {"gateway (1)": Usage(second * 0.5, 2 << 20)})
    return course


def test_it_is_well_formed_and_needs_nothing() -> None:
    assert check_page(page(a_course())).count("svg") >= 4


def test_what_it_quotes_is_escaped() -> None:
    course = a_course()
    nasty = '<script>alert("1")</script>'
    course.address = nasty
    course.mark(101.0, nasty)
    course.findings.append(nasty)
    course.failures[nasty] = 1
    course.said[nasty] = 1
    course.gave_up.append(nasty)
    course.used(101.0, {nasty: Usage(0, 0)})
    course.used(102.0, {nasty: Usage(0, 0)})
    check_page(page(course))


def test_of_nothing_there_is_a_page_too() -> None:
    course = Course(parsed([]), "http://127.0.0.1:1")
    assert "svg" not in check_page(page(course))
    assert verdict(course).startswith("FAILED: no video was sent and seen")


def test_a_process_that_is_late_counts_as_it_was() -> None:
    course = Course(parsed([]), "http://127.0.0.1:1", began_s=100.0)
    for process, at_s, phones in ((0, 101.0, 5), (1, 101.3, 7), (0, 102.0, 6), (0, 103.0, 8), (1, 103.2, 7)):
        sample = Tally().take(at_s)
        sample.phones = phones
        course.add(process, sample)
    assert [second.phones for second in course.seconds.values()] == [12, 13, 15]


def test_a_fault_fails_it() -> None:
    course = a_course()
    assert not course.wrong
    course.faults[Fault.STALE] = 2
    assert course.wrong == ["2 stale"]
    assert "FAILED: 2 stale." in text(course)


def test_seconds_add_up() -> None:
    course = a_course()
    assert course.latency(News.RECIPIENT).count == 300
    assert course.total.counts[Count.DONE] == 3
    assert cores(course.usage["gateway (1)"]) == [(1.5, 0.5), (2.5, 0.5)]
    assert course.total.cores == 0.25
    assert not course.saturated


def test_a_load_without_cpu_to_spare_is_told_of() -> None:
    course = a_course()
    sample = Tally().take(103.5)
    sample.usage = Usage(0.5 + 0.95, 1)
    course.add(0, sample)
    assert course.saturated == 1
    assert "its own as well" in text(course)
    assert "its own as well" in page(course)


def test_a_chart_shows_every_line_and_leaves_gaps() -> None:
    lines = [Line("a", [(0, 1), (1, math.nan), (2, 3)]), Line("b", [(0, 2), (1, 2), (2, 2)])]
    drawn = svg(Chart("Title", "ms", lines, log=True))
    paths = re.findall(r'class="line c(\d)" d="([^"]*)"', drawn)
    assert [number for number, _ in paths] == ["0", "1"]
    assert paths[0][1].count("M") == 2
    assert paths[1][1].count("M") == 1
    assert "a: 3 ms" in drawn


def test_a_chart_of_one_moment_is_none() -> None:
    assert svg(Chart("Title", "ms", [Line("a", [(1, 1)])])) == ""
    assert svg(Chart("Title", "ms", [])) == ""


def test_long_lines_are_thinned_and_keep_their_peaks() -> None:
    points = [(float(at), 1.0) for at in range(10_000)]
    points[5_003] = (5_003.0, 99.0)
    drawn = svg(Chart("Title", "ms", [Line("a", points)]))
    assert drawn.count("<rect") <= 600
    assert "a: 99 ms" in drawn


def test_metrics_tell_of_each_process() -> None:
    metrics = """
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total{process="0"} 1.5
process_cpu_seconds_total{process="worker"} 2.5
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes{process="0"} 1048576
process_resident_memory_bytes{process="worker"} 2097152
"""
    assert of_metrics(metrics) == {"gateway 0": Usage(1.5, 1 << 20), "gateway worker": Usage(2.5, 2 << 20)}


def test_an_empty_histogram_is_no_figure() -> None:
    course = a_course()
    course.total.latencies[News.PUSH] = Histogram()
    assert "upload → push" in text(course)
