"""A read that may fail for a while: tried again with growing, jittered pauses until its time is up."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import TypeVar

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
# Answers of a server that is overloaded, restarting or behind one that is; every other 4xx will be the same the next time.
# 416 (range beyond the end) belongs to a file that is being written just now.
PASSING_STATUS = (408, 416, 425, 429)
REFUSED = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "InvalidAccessKeyId", "SignatureDoesNotMatch")

Value = TypeVar("Value")


class StorageError(OSError):
    """Bytes cannot be had: the store is away, refuses, or the file has gone. The message names the address."""


class MissingFileError(StorageError, FileNotFoundError):
    """The store answers, and there is no such file."""


def with_retries(attempt: Callable[[float], Value], name: str, limit_s: float, sleep: Callable[[float], None] = time.sleep) -> Value:
    """What ``attempt`` returns.

    Args:
        attempt: is given the seconds that are left.
        name: the address, for messages.
        limit_s: seconds for all attempts and the pauses between them.
        sleep: waits; tests replace it.

    Raises:
        StorageError: no attempt succeeded in time, or one failed in a way that another would, too.
    """
    start = time.monotonic()
    tries = 0
    while True:
        left = limit_s - (time.monotonic() - start)
        try:
            return attempt(max(left, 0.001))
        except StorageError:
            raise
        except Exception as error:
            if isinstance(error, FileNotFoundError):
                raise MissingFileError(f"{name}: no such file") from error
            if is_lasting(error):
                raise StorageError(f"{name}: cannot be read ({describe(error)})") from error
            tries += 1
            # Full jitter: a thousand workers that lost one server must not all come back in the same millisecond.
            pause = random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**tries))
            left = limit_s - (time.monotonic() - start)
            if pause >= left:
                spent = f"{tries} {'try' if tries == 1 else 'tries'} over {time.monotonic() - start:.0f} s"
                raise StorageError(f"{name}: no success in {spent}, the last: {describe(error)}") from error
            sleep(pause)


def is_lasting(error: BaseException) -> bool:
    """Whether another try would fail the same way: refused, gone, or a fault of this program."""
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError | ImportError):
        return True
    if type(error).__name__ in REFUSED or str(error).startswith("Forbidden"):
        return True
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in PASSING_STATUS
    return isinstance(error, TypeError | AttributeError | LookupError | ValueError | AssertionError)


def describe(error: BaseException) -> str:
    """One line about an exception; many of the network's have no text."""
    if isinstance(error, TimeoutError | asyncio.TimeoutError) and not str(error):
        return "no answer in time"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
