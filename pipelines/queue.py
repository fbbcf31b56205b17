"""Which slide is read next: what is not done, not given up, and nobody else works on."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from pipelines.account import Account
from pipelines.extraction import Job
from pipelines.overlay import is_current, read_overlay
from pipelines.own import own_tissue
from pipelines.plan import is_too_coarse
from pipelines.quarantine import Entry
from pipelines.slides_csv import Surveyed
from pipelines.slidework import Work
from pipelines.survey import SETTLING
from wsi.bags import BagInfo
from wsi.claims import Claim, Claims
from wsi.errors import NeedsUpsamplingError
from wsi.staging import Stage
from wsi.supervision import KILLED

TRANSIENT = (
    "no-mpp",
    "implausible-mpp",
    "open-failed",
    "unsupported-format",
    "missing-file",
    "io-error",
    SETTLING,
    KILLED,
)
"""Reasons that say nothing about a slide for good: it is looked at again by every run."""


class Queue:
    """The slides of a run that are left to do, claimed one by one.

    Args:
        retry: try slides again that failed before.
        redo: make again what is done, where bags are not asked for.
    """

    def __init__(
        self,
        work: Work,
        found: Sequence[Surveyed],
        account: Account,
        claims: Claims,
        stage: Stage | None,
        *,
        retry: bool,
        redo: bool,
    ) -> None:
        self._work = work
        self._account = account
        self._claims = claims
        self._stage = stage
        self._retry = retry
        self._redo = redo
        self._held: dict[str, list[Claim]] = {}
        self._stores = [work.store(k) for k in range(len(work.targets))]
        self._keys = [_Keys(work, k) for k in range(len(work.targets))]
        self.todo: deque[Surveyed] = deque(item for item in found if self._is_left(item))
        self._others: list[Surveyed] = []
        self._coming: Job | None = None
        if stage is not None:
            stage.want([item.file.path for item in self.todo])

    def __len__(self) -> int:
        return len(self.todo)

    @property
    def is_waiting(self) -> bool:
        """Return whether a slide will come, whose copy is being made."""
        return self._coming is not None

    def take(self) -> Job | None:
        """Return the next slide that nobody else works on, claimed; None when there is none now."""
        job = self._coming or self._next()
        if self._stage is not None and job is not None:
            path = job.item.file.path
            self._coming = None if self._stage.is_settled(path) else job
            if self._coming is not None:
                return None
            job.path = self._stage.get(path)
        return job

    def _next(self) -> Job | None:
        while self.todo:
            item = self.todo.popleft()
            claims = self._claimed(item)
            if not claims:
                self._others.append(item)
                continue
            self._held[item.file.slide_id] = list(claims.values())
            if self._is_left(item):
                some = tuple(k for k in claims if not self._work.targets or self._lacks(item, k))
                return Job(item, some, item.file.path)
            self.release(item)  # done by another process since this run began
        return None

    def release(self, item: Surveyed) -> None:
        """Give up a slide: its claims, and the copy of it."""
        for claim in self._held.pop(item.file.slide_id, []):
            claim.release()
        if self._stage is not None:
            self._stage.done(item.file.path)

    def is_ours(self, item: Surveyed) -> bool:
        """Return whether no other process has taken a slide over."""
        return all(claim.is_live() for claim in self._held.get(item.file.slide_id, []))

    def again(self) -> int:
        """Look again at the slides that others worked on; return how many still do.

        Those that others have finished are counted, those that they have left are to do.
        """
        others, self._others = self._others, []
        for item in others:
            if self._is_left(item):
                (self.todo if self._is_free(item) else self._others).append(item)
        return len(self._others)

    def _is_free(self, item: Surveyed) -> bool:
        claims = self._claimed(item)
        for claim in claims.values():
            claim.release()
        return bool(claims)

    def _names(self, item: Surveyed) -> list[str]:
        kinds = [target.bags.name for target in self._work.targets] or [self._work.until]
        return [f"{kind}/{item.file.slide_id}" for kind in kinds]

    def _claimed(self, item: Surveyed) -> dict[int, Claim]:
        """Return the claims got, by number of the target."""
        got = {k: self._claims.take(name) for k, name in enumerate(self._names(item))}
        return {k: claim for k, claim in got.items() if claim is not None}

    def _is_left(self, item: Surveyed) -> bool:
        """Return whether a slide is to do; others are counted."""
        account, slide_id = self._account, item.file.slide_id
        if item.status != "ok" or item.info is None:
            if self._is_free(item):  # else another process could open it
                account.refuse(item)
            else:
                account.elsewhere += 1
            return False
        if self._is_done(item):
            return False
        earlier = account.quarantine.entry(slide_id)
        if earlier is not None and not self._worth_a_retry(earlier, item):
            account.keep_quarantined(earlier)
            return False
        return True

    def _is_done(self, item: Surveyed) -> bool:
        if not self._work.targets:
            return self._is_drawn(item)
        infos: list[BagInfo] = []
        for store, keys in zip(self._stores, self._keys, strict=True):
            info = store.held(item.file.slide_id, keys.of(item))
            if info is None:
                return False
            infos.append(info)
        self._account.keep(item, infos[0])
        return True

    def _lacks(self, item: Surveyed, k: int) -> bool:
        return not self._stores[k].holds(item.file.slide_id, self._keys[k].of(item))

    def _is_drawn(self, item: Surveyed) -> bool:
        """Return whether tissue and tiles of a slide were found before, as now asked for."""
        work, slide_id = self._work, item.file.slide_id
        if self._redo or item.info is None or self._account.quarantine.entry(slide_id):
            return False
        own = own_tissue(work.out, item.file, item.info, work.config.tissue)
        drawn = read_overlay(work.out, slide_id)
        tiling = work.tiling if work.until == "tiles" else None
        if drawn is None or not is_current(drawn, item.info, work.config.tissue, own, tiling):
            return False
        self._account.keep_drawn(slide_id, drawn.tiles, drawn.tissue_share)
        return True

    def _worth_a_retry(self, earlier: Entry, item: Surveyed) -> bool:
        changed = item.info is not None and earlier.fingerprint != item.info.fingerprint
        allowed = 0 < earlier.bad_tiles <= self._work.max_bad_tiles
        fits = earlier.reason == NeedsUpsamplingError.reason and not is_too_coarse(
            item, self._work.tiling
        )
        ours = item.file.slide_id not in self._account.before  # failed during this very run
        asked = (self._retry and not ours) or allowed or fits
        return asked or changed or (earlier.reason in TRANSIENT and not ours)


class _Keys:
    """The provenance keys that the bags of a target must have; a key costs more than a look."""

    def __init__(self, work: Work, k: int) -> None:
        self._work = work
        self._recipe = work.targets[k].recipe
        self._known: dict[str, str] = {}

    def of(self, item: Surveyed) -> str:
        slide_id = item.file.slide_id
        if slide_id not in self._known and item.info is not None:
            common = self._work.config.tissue
            own = own_tissue(self._work.out, item.file, item.info, common)
            self._known[slide_id] = self._recipe.provenance(item.info, own=own).key
        return self._known.get(slide_id, "")
