"""
Say of any directories with projects what Terrafirma would do with them; no server is asked.

Usage: python testbed/try.py [--pages] DIRECTORY[:DATA.json]…

DATA.json is an entry of `apps` as JSON, without its source: `{"domain": …, "stateful": …}`.
"""

import json
import sys
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from terrafirma.app.check import Report, as_data, check, shown
from terrafirma.app.guess import settings_of


def outcome(report: Report) -> str:
    """One of four outcomes, as the summary counts them."""
    lines = len({*report.proposed} - {"domain"})
    if report.left:
        return "refused"
    return f"served with {lines} line{'s' if lines != 1 else ''}" if lines else "served"


def tried(directory: str, data: str, pages: bool) -> str:
    """Print what would become of a project; returns the outcome."""
    given = json.loads(Path(data).read_text()) if data else {}
    try:
        report = check({**settings_of(directory), **given})
    except Exception:  # noqa: BLE001  # each of many is tried, and a traceback is an outcome, too
        print(f"{directory}: traceback\n  {traceback.format_exc()}")
        return "traceback"
    print(f"{directory}: {outcome(report)}")
    lines = shown(report) if pages else report.left or as_data(report.proposed)
    print(*(f"  {line}" for line in lines), sep="\n")
    return "served with data" if outcome(report).startswith("served with") else outcome(report)


def main() -> int:
    words = [word for word in sys.argv[1:] if word != "--pages"]
    if not words:
        print(__doc__)
        return 2
    found = Counter(tried(*word.partition(":")[::2], "--pages" in sys.argv) for word in words)
    print(*(f"{number} {what}" for what, number in found.most_common()), sep=", ")
    return 1 if found["refused"] or found["traceback"] else 0


if __name__ == "__main__":
    sys.exit(main())
