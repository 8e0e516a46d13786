"""The curl options that the docs use, for machines without curl."""

from __future__ import annotations

import argparse
import sys
import urllib.error
import urllib.request


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("-s", "--silent", action="store_true")
    parser.add_argument("-f", "--fail", action="store_true")
    parser.add_argument("-X", "--request")
    parser.add_argument("-H", "--header", action="append", default=[])
    parser.add_argument("-d", "--data")
    options = parser.parse_args()
    headers = dict(line.split(": ", 1) for line in options.header)
    body = None if options.data is None else options.data.encode()
    request = urllib.request.Request(options.url, body, headers, method=options.request)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            sys.stdout.write(answer.read().decode())
    except urllib.error.HTTPError as error:
        sys.stdout.write(error.read().decode())
        return 22 if options.fail else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
