"""What damaged input may do when it is read: be accepted, or refused in a sentence that names the section, in time."""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from fedsparsify.errors import WireError

__all__ = ["Fail", "Tally"]

Fail = Callable[[int, bytes, str], None]
"""Number of an input, its bytes, and what is wrong with how it was handled."""


@dataclass
class Tally:
    """What came of the inputs so far."""

    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failures: int = 0
    slowest: float = 0.0

    def attempt(
        self, number: int, data: bytes, read: Callable[[], object], *, named: re.Pattern[str], slow: float, fail: Fail
    ) -> None:
        """Read an input, and tell ``fail`` if it is not handled as it should be.

        Args:
            number: of the input.
            data: the input, which ``read`` reads.
            read: what is tried.
            named: what a refusal begins with; its first group is the section.
            slow: seconds of the processor that no reading may take.
            fail: is told of each failure.
        """
        begin = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                read()
            self.accepted += 1
        except KeyboardInterrupt:
            raise
        except WireError as error:
            section = named.match(str(error))
            self.refused[section[1] if section else "?"] += 1
            if not section:
                fail(number, data, f"no section is named: {error}")
        except BaseException as error:  # a panic of the coder's is no Exception
            fail(number, data, f"{type(error).__name__}: {error}")
        took = time.process_time() - begin
        self.slowest = max(self.slowest, took)
        if took > slow:
            fail(number, data, f"it took {took:.1f} s")
