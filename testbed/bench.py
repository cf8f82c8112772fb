"""
Measures the design's promises about speed, side by side in one run; `make bench` prints them.

These are no tests: the figures of one run compare only with each other.
"""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from testbed import bench_platform, bench_postgres, bench_releases, bench_uploads

PARTS = {
    "platform": bench_platform,
    "postgres": bench_postgres,
    "releases": bench_releases,
    "uploads": bench_uploads,
}


def main() -> None:
    parser = ArgumentParser(
        prog="testbed/bench.sh",
        description="Measure the design's promises about speed. Without a PART: all of them.",
        epilog="\n".join(f"  {name:9} {part.__doc__}" for name, part in PARTS.items()),
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="one of these:")
    parts = parser.parse_args().parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    for name in parts:
        PARTS[name].bench()


if __name__ == "__main__":
    main()
