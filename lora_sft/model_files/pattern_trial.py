"""Match patterns with names, as a program of its own: `module_patterns` runs it and may end it.

It imports only the standard library, so it starts in milliseconds. Standard input is one JSON
document: the limits, the patterns and the names. Standard output has one line per pattern: its
index before it is matched, and after the index a message if it is not a regular expression. So if
the program is ended, the last line names the pattern.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from typing import Any


def limit(kind: int, value: int) -> None:
    """Set a limit of this process, but never above the limit that it already has."""
    hard = resource.getrlimit(kind)[1]
    allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (allowed, hard))


def main(document: dict[str, Any]) -> None:
    """Limit the time and the memory of this process, and match each pattern with each name."""
    limit(resource.RLIMIT_CPU, document["cpu_seconds"])
    limit(resource.RLIMIT_AS, document["memory_bytes"])
    limit(resource.RLIMIT_CORE, 0)
    for index, (expression, is_whole_name) in enumerate(document["patterns"]):
        print(index, end=" ", flush=True)
        try:
            pattern = re.compile(expression)
        except (re.error, RecursionError, OverflowError) as error:
            print(error)
            return
        match = pattern.fullmatch if is_whole_name else pattern.match
        for name in document["names"]:
            match(name)
        print()
    print("done")


if __name__ == "__main__":
    main(json.load(sys.stdin))
