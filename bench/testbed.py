# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the measuring programs share: the places, the test bed, and its broker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
CACHE = PROJECT / ".cache"
RESULTS = CACHE / "bench"
LOGS = CACHE / "logs" / "bench"
LAB = PROJECT / "tests/lab/lab"
#: Where the collection, as it was built, is to be found.
COLLECTIONS = os.environ.get("ANSIBLE_COLLECTIONS_PATH") or str(CACHE / "collections")


class BenchError(Exception):
    """Something the user can act upon; its text is the whole message."""


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def environment(**settings: str) -> dict[str, str]:
    """Of Ansible's programs, with this collection alone, unless the settings have it otherwise."""
    return os.environ | {
        "PATH": f"{PROJECT / '.venv/bin'}:{os.environ['PATH']}",
        "ANSIBLE_COLLECTIONS_PATH": COLLECTIONS,
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_PIPELINING": "1",
        **settings,
    }


def lab(*arguments: str) -> str:
    """Run the test bed's program, which shows its progress; return its result."""
    done = subprocess.run([LAB, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BenchError(f"lab {arguments[0]} failed")
    return done.stdout.strip()


def broker_package() -> str:
    """Make the broker's package, and return what names the broker.

    Before the hosts are up and in no play, since the package may have to be fetched: the test bed has no way out.
    """
    done = subprocess.run([LAB, "deb"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    sys.stderr.write(done.stderr)
    if done.returncode:
        raise BenchError("lab deb failed")
    return done.stderr.splitlines()[-1].removeprefix("broker: ")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number
