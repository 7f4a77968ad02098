"""`scripts/load`: the command line of the load test."""

import sys

import uvloop

from gateway.parsers import ConfigError
from scripts.loadtest import report
from scripts.loadtest.options import Refused, parsed
from scripts.loadtest.page import page
from scripts.loadtest.progress import Progress
from scripts.loadtest.run import run


def main() -> int:
    """Run a test; 0, or 1 where something was lost, wrong or refused, and 2 where it could not be run."""
    try:
        options = parsed(sys.argv[1:])
        course = uvloop.run(run(options, Progress(sys.stderr)))
    except Refused as refused:
        print(f"load: {refused}", file=sys.stderr)
        return 2
    except ConfigError as error:
        print("\n".join(f"load: {sentence}" for sentence in error.sentences), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(report.text(course))
    if options.html is not None:
        options.html.write_text(page(course), "utf-8")
        print(f"\nThe same with plots: {options.html}")
    return 1 if course.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
