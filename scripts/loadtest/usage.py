"""CPU and memory of processes: from /proc where they are on this machine, else from what a gateway's metrics say."""

import os
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    """What a process has used: seconds of CPU since its start, and bytes of memory that are resident now."""

    cpu_s: float
    resident: int


def of_process(pid: int) -> Usage | None:
    """What a process has used; None where it is gone."""
    try:
        # Behind the name, which may have anything in it: the state, then numbers (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return Usage((int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE)


def of_this_process() -> Usage:
    """What this process has used."""
    return Usage(time.process_time(), int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE)


def of_metrics(text: str) -> dict[str, Usage]:
    """What the processes of a gateway have used, by name, as its metrics say. Raises ValueError for what are none."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in {"process_cpu_seconds_total", "process_resident_memory_bytes"}:
                process = f"gateway {sample.labels.get('process', '')}".rstrip()
                found[process][sample.name] = sample.value
    return {
        process: Usage(values["process_cpu_seconds_total"], int(values["process_resident_memory_bytes"]))
        for process, values in found.items()
        if len(values) == 2
    }
