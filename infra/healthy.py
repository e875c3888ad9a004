"""Is the server at this address healthy? ``python infra/healthy.py http://localhost:4200/api/health``: exit code 0 or 1.

For health checks inside the image, which has no curl; needs nothing but Python, and starts in a blink with ``-I -S``.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

SECONDS = 5


def main(url: str) -> int:
    """0 if the address answers with success, else 1, with the reason on standard error."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS):
            return 0
    except (urllib.error.URLError, OSError) as problem:
        print(f"{url} is not healthy: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
