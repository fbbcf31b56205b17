"""Child processes for work that may crash, hang or eat all memory: one of them dies, not the run.

Native decoders of slides do all three. A child does one task at a time and lives on for the next;
one that dies, or says nothing for too long, is replaced, and the task it had is given back with a
reason. Pixels come from a child through memory that both see, so nothing large is copied or
pickled.
"""

from __future__ import annotations

from wsi.supervision.child import CRASH, KILLED, TIMEOUT, Ended, Event, Limits, Lost, Said
from wsi.supervision.crew import Crew
from wsi.supervision.serving import BUG, MEMORY, Channel

__all__ = [
    "BUG",
    "CRASH",
    "KILLED",
    "MEMORY",
    "TIMEOUT",
    "Channel",
    "Crew",
    "Ended",
    "Event",
    "Limits",
    "Lost",
    "Said",
]
