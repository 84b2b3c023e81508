"""What happens during a run, as one stream of dictionaries.

Stages and the training loop call a `Listener`; the runner writes what is worth keeping to events.jsonl, the
command line draws progress from the same stream. Every event has the key `event`.
"""

from collections.abc import Callable
from typing import Any

Event = dict[str, Any]
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""
