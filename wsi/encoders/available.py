"""Whether an encoder can be had here, found out in seconds and before any work starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from wsi.encoders.catalog import CATALOG
from wsi.encoders.hub import Source, in_folder
from wsi.encoders.load import (
    check_component,
    check_encoder_name,
    check_installed,
    check_timm_name,
    is_class,
    weights_path,
)
from wsi.encoders.row import HUB, TIMM
from wsi.errors import EncoderError
from wsi.specs import Component


@dataclass(frozen=True)
class Availability:
    """What is known of an encoder's weights on this machine.

    Args:
        repo: where they are on the hub; empty where they do not come from there.
        page: where licence and access are settled.
        gated: whether they are handed out on request only; None where it is not known.
        path: the file of weights here, if it is here.
        reachable: whether the hub hands them out now; None where it was not asked.
        problem: why they are not to be had; empty where they are, or where nobody asked.
    """

    name: str
    repo: str = ""
    page: str = ""
    licence: str = "unknown"
    gated: bool | None = None
    path: Path | None = None
    reachable: bool | None = None
    problem: str = ""

    @property
    def cached(self) -> bool:
        """Return whether no network is needed."""
        return self.path is not None or not (self.repo or self.problem)


def availability(component: Component, ask: bool = True) -> Availability:
    """Return whether the weights that `component` names are here, or can be fetched now.

    Args:
        ask: ask the hub, for at most four seconds, where they are not here.

    Raises:
        UnknownNameError, ConfigError: as for `wsi.encoders.load_encoder`.
    """
    _check(component)
    row = CATALOG.get(component.name)
    licence, gated = (row.licence, row.gated) if row else ("unknown", None)
    found = Availability(component.name, licence=licence, gated=gated)
    try:
        place = _place(component)
    except EncoderError as error:
        return replace(found, problem=str(error))
    if not isinstance(place, Source):
        return replace(found, path=place)
    found = replace(found, repo=place.repo, page=place.page, path=place.here())
    return found if found.cached or not ask else _asked(found, place)


def preflight(component: Component) -> Availability:
    """Return how the weights will be had, or fail within seconds and before any work.

    Raises:
        EncoderError: they are neither here nor to be fetched; names model, licence page, cache and
            the built-in encoder as the way on.
        UnknownNameError, ConfigError: as for `wsi.encoders.load_encoder`.
    """
    found = availability(component)
    if found.problem:
        raise EncoderError(found.problem)
    return found


def pull(component: Component) -> Path | None:
    """Return the file of weights after fetching what is not here; None where there is none.

    Raises:
        EncoderError: it cannot be fetched.
        UnknownNameError, ConfigError: as for `wsi.encoders.load_encoder`.
    """
    _check(component)
    place = _place(component)
    if not isinstance(place, Source):
        return place
    place.config()
    return place.fetch(place.weight_files)


def _check(component: Component) -> None:
    # A class of its own is imported, with all it needs, to look at its settings.
    check_component(component) if component.params else check_encoder_name(component.name)


def _place(component: Component) -> Source | Path | None:
    """Return where the weights are: on the hub, at a path, or nowhere as none are needed.

    Raises:
        EncoderError: the path given has none, or timm knows of none.
    """
    name, given = component.name, component.params.get("weights", "pretrained")
    if is_class(name):
        return None
    if name in CATALOG:
        check_installed(CATALOG[name])
    if given == "random":
        return None
    source = _source(name)
    if given != "pretrained":
        path = weights_path(given)
        return in_folder(path, name, source)[1] if path.is_dir() else path
    if source is None:
        raise EncoderError(
            f"encoder {name}: timm knows no pretrained weights for it — give encoder.weights=<file>"
        )
    return source


def _source(name: str) -> Source | None:
    row = CATALOG.get(name)
    if row is not None:
        return Source.of(row, row.repo or "")
    if name.startswith(HUB):
        return Source(name, name.removeprefix(HUB))
    from wsi.encoders.timm_encoder import hub_id

    check_timm_name(name.removeprefix(TIMM))
    repo = hub_id(name.removeprefix(TIMM))
    return Source(name, repo, described=False) if repo else None


def _asked(found: Availability, source: Source) -> Availability:
    try:
        if source.reach(source.weight_files) is not None:
            return replace(found, reachable=True)
        error = source.unavailable("the repository has no weights of a usual name")
    except EncoderError as caught:
        error = caught
    return replace(found, reachable=False, problem=str(error))
