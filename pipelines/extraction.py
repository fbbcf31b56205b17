"""Slides through readers and encoders into bags, many at a time; one slide's trouble is its own."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.encoding import Encoded, Encoding
from pipelines.slides_csv import Surveyed
from pipelines.slidework import NO_SPACE, READ, Found, Outcome, Planned, Work, read_slide
from pipelines.tilecounts import TileCount, bad_line, fates
from wsi.bags import BagInfo
from wsi.encoders import Encoder
from wsi.errors import BagError, ResourceError
from wsi.extract import BagInProgress, store_empty
from wsi.prepared import Prepared
from wsi.supervision import BUG, CRASH, KILLED, MEMORY, Crew, Ended, Event, Lost, Said

_LOOK_S = 0.2  # how often a run looks whether it shall stop
_TRIES = {KILLED: 3, CRASH: 2, MEMORY: 2}
"""How often a slide is tried whose reader died: the slide before may have spoilt its memory."""


@dataclass(eq=False)
class Job:
    """One slide in hand.

    Attributes:
        wanted: numbers of the targets whose bags are made.
        path: where it is read.
        waiting: its parts that are not in a bag yet, in order.
        read: how its reader ended; None while it reads.
        dropped: whether nothing of it is wanted any more.
    """

    item: Surveyed
    wanted: tuple[int, ...]
    path: Path
    tries: int = 0
    bags: list[BagInProgress] = field(default_factory=list)
    empty: list[BagInfo] = field(default_factory=list)
    waiting: deque[_Part] = field(default_factory=deque)
    read: Outcome | None = None
    spent: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    dropped: bool = False

    @property
    def slide_id(self) -> str:
        return self.item.file.slide_id

    def abandon(self) -> None:
        """Leave nothing of the bags in progress."""
        self.dropped = True
        for bag in self.bags:
            bag.__exit__(None, None, None)
        self.bags = []
        self.waiting.clear()


class Slides(Protocol):
    """Gives the next slide to read, None when there is none; or when there is none yet."""

    def take(self) -> Job | None: ...
    @property
    def is_waiting(self) -> bool: ...


@dataclass(eq=False)
class _Part:
    prepared: Prepared
    encoded: Encoded | None = None
    is_done: bool = False


class Extraction:
    """Reads and encodes slides side by side.

    Args:
        crew: the children that read.
        encoders: one for each target.
        tiles: told how many tiles there are and were dealt with.
        stop: called often; raises when the run shall end.
    """

    def __init__(
        self,
        work: Work,
        crew: Crew,
        encoders: Sequence[Encoder],
        encoding: Encoding,
        tiles: TileCount,
        stop: Callable[[], None],
    ) -> None:
        self._work = work
        self._crew = crew
        self._encoders = encoders
        self._encoding = encoding
        self._tiles = tiles
        self._stop = stop
        self._stores = [work.store(k) for k in range(len(work.targets))]
        self._jobs: dict[int, Job] = {}
        self._said: dict[Encoded, Said] = {}
        if work.targets:
            crew.share(work.slot_bytes)

    def outcomes(self, queue: Slides) -> Iterator[tuple[Job, Outcome]]:
        """Yield slides as they end, until the queue is empty; done ones are published already."""
        try:
            while True:
                self._stop()
                while self._crew.idle and (job := queue.take()) is not None:
                    self._start(job)
                if not self._jobs and not queue.is_waiting:
                    return
                for event in self._crew.events(_LOOK_S, self._encoding.ready):
                    yield from self._heard(event)
                yield from self._encoded()
                if self._encoding.is_idle:
                    self._encoding.flush()
        finally:
            for job in self._jobs.values():
                self._crew.drop(id(job))
                job.abandon()

    def _start(self, job: Job) -> None:
        job.tries += 1
        self._jobs[id(job)] = job
        self._crew.give(id(job), read_slide, self._work, job.item, job.path, job.wanted)

    def _heard(self, event: Event) -> Iterator[tuple[Job, Outcome]]:
        job = self._jobs.get(event.key)
        if job is None or job.dropped:
            if isinstance(event, Said):
                self._crew.free(event)
            return
        if isinstance(event, Said):
            yield from self._told(job, event)
        elif isinstance(event, Ended):
            read: Outcome = event.value
            job.read = read
            if read.state == NO_SPACE:
                raise ResourceError(read.message)
            if read.state != READ:
                yield self._ended(job, read)
            elif not job.waiting:
                yield self._published(job, read)
        else:
            yield from self._lost(job, event)

    def _told(self, job: Job, said: Said) -> Iterator[tuple[Job, Outcome]]:
        message = said.message
        if isinstance(message, Found):
            if job.tries == 1:
                self._tiles.located(message.tiles)
            if self._work.until != "bags":
                self._tiles.read(message.tiles)
        elif isinstance(message, Planned):
            self._plan(job, message)
        elif isinstance(message, Prepared):
            yield from self._take_part(job, message, said)

    def _plan(self, job: Job, planned: Planned) -> None:
        for k, plan in zip(job.wanted, planned.plans, strict=True):
            if plan.empty:
                job.empty.append(store_empty(self._stores[k], plan))
                continue
            bag = BagInProgress(self._stores[k], plan, self._encoders[k].info.dim)
            job.bags.append(bag)
            self._tiles.read(len(plan.grid) - len(plan.fresh) if k == job.wanted[0] else 0)

    def _take_part(self, job: Job, prepared: Prepared, said: Said) -> Iterator[tuple[Job, Outcome]]:
        part = _Part(prepared, is_done=said.pixels is None)
        job.waiting.append(part)
        if said.pixels is None:
            yield from self._fill(job)
            return
        edge = self._work.tiling.tile_px
        shape = len(prepared.rows), edge, edge, 3
        pixels = said.pixels[: len(prepared.rows) * edge * edge * 3].reshape(shape)
        part.encoded = Encoded((job, part), pixels, job.wanted)
        self._said[part.encoded] = said
        self._encoding.put(part.encoded)

    def _encoded(self) -> Iterator[tuple[Job, Outcome]]:
        done = self._encoding.done()  # first: it silences the bell, so that a later one is heard
        for encoded in self._encoding.copied():
            if (said := self._said.pop(encoded, None)) is not None:
                self._crew.free(said)
        for encoded in done:
            job, part = encoded.tag
            if job.dropped:
                continue
            if encoded.error is not None:
                raise encoded.error
            part.is_done = True
            job.spent["encode"] += encoded.seconds
            yield from self._fill(job)

    def _fill(self, job: Job) -> Iterator[tuple[Job, Outcome]]:
        """Put what is encoded into the bags, in order; a bag that is full is published."""
        try:
            while job.waiting and job.waiting[0].is_done:
                part = job.waiting.popleft()
                for bag, k in zip(job.bags, job.wanted, strict=True):
                    bag.add(part.prepared, _features(part, k, self._encoders[k].info.dim))
                self._tiles.read(part.prepared.size)
        except BagError as error:
            yield self._ended(job, Outcome(job.slide_id, "non-finite-embedding", str(error)))
            return
        if job.read is not None and not job.waiting:
            yield self._published(job, job.read)

    def _published(self, job: Job, read: Outcome) -> tuple[Job, Outcome]:
        before = time.perf_counter()
        spent = {**read.spent, **job.spent}
        for bag in job.bags:
            bag.timings.update({f"{name}_s": round(s, 3) for name, s in spent.items()})
        try:
            infos = job.empty + [bag.finish() for bag in job.bags]
        except BagError as error:
            return self._ended(job, Outcome(job.slide_id, "bag-error", str(error)))
        job.spent["write"] += time.perf_counter() - before
        outcome = _outcome(read, infos[0], job.spent)
        files = sum(info.status == "done" for info in infos)
        outcome = replace(outcome, bytes=sum(info.bytes for info in infos), files=files)
        return self._ended(job, outcome)

    def _ended(self, job: Job, outcome: Outcome) -> tuple[Job, Outcome]:
        self._jobs.pop(id(job), None)
        if job.read is None:
            self._crew.drop(id(job))
        job.abandon()
        return job, outcome

    def _lost(self, job: Job, lost: Lost) -> Iterator[tuple[Job, Outcome]]:
        """Try a slide again whose reader died, in a new one, or say what is wrong with it."""
        if job.tries < _TRIES.get(lost.reason, 1):
            again = Job(job.item, job.wanted, job.path, job.tries)
            self._jobs.pop(id(job))
            job.abandon()
            self._start(again)
            return
        name = job.path.name
        if lost.reason == BUG:
            message = f"{name}: {lost.message} — copy it again from its source, or report this"
            yield self._ended(job, Outcome(job.slide_id, "decode-error", message, trace=lost.trace))
            return
        message = f"{name}: {lost.message} — copy it again from its source, or convert it"
        yield self._ended(job, Outcome(job.slide_id, lost.reason, message))


def _features(part: _Part, k: int, dim: int) -> NDArray[np.float32]:
    if part.encoded is None:
        return np.zeros((0, dim), np.float32)
    return part.encoded.features[k]


def _outcome(read: Outcome, info: BagInfo, spent: Mapping[str, float]) -> Outcome:
    """Return how a slide ended whose bags are published."""
    return replace(
        read,
        state=info.status,
        message=info.reason or "",
        tiles=info.n,
        fates=fates(info, just_made=True),
        warning=bad_line(info),
        spent={**read.spent, **spent},
    )
