"""Where weights lie: the hub's cache, the hub, a folder or a file; nothing heavy is imported."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    get_token,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError

from wsi.encoders.row import TIMM, Row
from wsi.errors import EncoderError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
CONFIG = "config.json"
_REACH_S = 3.0
_DEADLINE_S = 4.0  # looking a name up knows no timeout of its own
# The hub's client has changed its transport library more than once; its own error knows which.
_NETWORK_ERRORS = cast("tuple[type[Exception], ...]", (OSError, *HfHubHTTPError.__bases__))


@dataclass(frozen=True)
class Source:
    """Where an encoder's files are on the hub.

    Args:
        encoder: its name, for messages.
        repo: `<org>/<model>`.
        revision: the commit to ask for; the newest where none is given.
        file: name of the weights where it is not one of the usual.
        described: whether a `config.json` lies beside the weights and is needed, too.
    """

    encoder: str
    repo: str
    revision: str | None = None
    file: str = ""
    described: bool = True

    @classmethod
    def of(cls, row: Row, repo: str) -> Source:
        """Return the source of a row whose repository is known to be `repo`."""
        described = not (row.file or row.load.startswith(TIMM))
        return cls(row.name, repo, row.revision, row.file, described)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Return the names that the weights may have, the safest first."""
        return (self.file,) if self.file else WEIGHT_FILES

    @property
    def page(self) -> str:
        """Return the page where licence and access are settled."""
        return f"{constants.ENDPOINT}/{self.repo}"

    def cached(self, names: Sequence[str]) -> Path | None:
        """Return the first of `names` that is in the cache: of the pinned commit, else the newest.

        Other tools keep the newest; what a file holds is recorded by its hash in any case.
        """
        for revision in dict.fromkeys((self.revision, None)):
            for name in names:
                path = try_to_load_from_cache(self.repo, name, revision=revision)
                if isinstance(path, str):
                    return Path(path)
        return None

    def reach(self, names: Sequence[str]) -> str | None:
        """Return which of `names` the hub would hand out now; None where it has none of them.

        Asked once, for seconds only.

        Raises:
            EncoderError: offline, out of reach, gated or unknown; says what to do.
        """
        if constants.HF_HUB_OFFLINE:
            raise self.unavailable("HF_HUB_OFFLINE is set and it is not in the cache")
        for name in names:
            url = hf_hub_url(self.repo, name, revision=self.revision)
            try:
                _within(_DEADLINE_S, lambda url=url: get_hf_file_metadata(url, timeout=_REACH_S))
                return name
            except EntryNotFoundError:
                continue
            except GatedRepoError as error:
                raise self.unavailable(self._how_to_get_access()) from error
            except _NETWORK_ERRORS as error:
                raise self.unavailable(_one_line(error)) from error
        return None

    def fetch(self, names: Sequence[str]) -> Path:
        """Return the local path of the first of `names`, from the cache or else from the hub.

        Raises:
            EncoderError: it is in neither; says what to do.
        """
        if cached := self.cached(names):
            return cached
        name = self.reach(names)
        if name is None:
            raise self.unavailable(f"the repository has none of {', '.join(names)}")
        try:
            return Path(hf_hub_download(self.repo, name, revision=self.revision))
        except _NETWORK_ERRORS as error:
            raise self.unavailable(_one_line(error)) from error

    def config(self) -> Path | None:
        """Return the configuration beside the weights; None for weights that need none.

        Raises:
            EncoderError: as for `fetch`.
        """
        return self.fetch((CONFIG,)) if self.described else None

    def here(self) -> Path | None:
        """Return the weights in the cache; None while anything that is needed is not there."""
        complete = not self.described or self.cached((CONFIG,)) is not None
        return self.cached(self.weight_files) if complete else None

    def unavailable(self, reason: str) -> EncoderError:
        """Return the error that says why, and every way on."""
        return EncoderError(
            f"encoder {self.encoder}: the weights of {self.repo} are not available ({reason}) — "
            f"see {self.page} for licence and access, put them in the cache "
            f"{constants.HF_HUB_CACHE}, give encoder.weights=<file or folder>, or use "
            "encoder=texture-v1, which needs none"
        )

    def _how_to_get_access(self) -> str:
        if get_token() is None:
            return "it is gated and there is no token: ask for access, then `hf auth login`"
        return "it is gated and the token has no access: ask for it"


def in_folder(folder: Path, encoder: str, source: Source | None) -> tuple[Path | None, Path]:
    """Return the configuration, where there is one, and the weights of a folder.

    Raises:
        EncoderError: it has no weights.
    """
    names = source.weight_files if source else WEIGHT_FILES
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise EncoderError(
            f"encoder {encoder}: {folder} has none of {', '.join(names)} — give a folder as the "
            "hub lays it out, or the file"
        )
    config = folder / CONFIG
    return (config if config.is_file() else None), found


def hub_sha256(path: Path) -> str | None:
    """Return the SHA-256 that the hub stated for a file in its cache, if it did."""
    name = path.resolve().name
    if path.is_symlink() and len(name) == 64 and set(name) <= set("0123456789abcdef"):
        return name
    return None


def _within(seconds: float, call: Callable[[], Any]) -> None:
    """Run `call` for at most `seconds`; what still runs then is left behind."""
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            outcome.append(None)
        except BaseException as error:  # handed to the caller
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    if outcome[0] is not None:
        raise outcome[0]


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
