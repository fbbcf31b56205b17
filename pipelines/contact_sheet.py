"""The contact sheet of an output folder: what earlier and present runs left there, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.lesions import lesion_words
from pipelines.overlay import Overlay, overlay_path, read_overlay, tiling_facts
from pipelines.quarantine import Entry, Quarantine
from pipelines.slides_csv import read_slides_csv
from pipelines.tilecounts import fates, left_out_words
from wsi.bags import BagInfo, BagStore
from wsi.extract import Tiling
from wsi.lesions import Lesion
from wsi.report.contact_sheet import (
    SlideCard,
    State,
    is_contact_sheet,
    write_contact_sheet,
)
from wsi.slides.resolution import agree
from wsi.specs import Config


def write_sheet(
    out: Path,
    config: Config,
    tiling: Tiling,
    store: BagStore | None,
    name: str = "report",
    lesions: Sequence[Lesion] = (),
) -> Path:
    """Write the pages of all slides in OUT/slides.csv and return the first.

    Nothing but the files below `out` is read, so a run that had nothing to do writes it too.
    Where another report has the name, the pages are called `slides`.

    Args:
        store: of the bags made; without one a slide is done when it was looked at.
        lesions: as this run counted them, so that they go with the tiles that are shown.
    """
    on: dict[str, list[Lesion]] = {}
    for lesion in lesions:
        on.setdefault(lesion.slide_id, []).append(lesion)
    entries = Quarantine(out).entries()
    bags = None if store is None else {info.slide_id: info for info in store.infos()}
    rows = read_slides_csv(out / "slides.csv")
    cards = [
        _card(out, row, entries, bags, config, tiling, on.get(row["slide_id"], ())) for row in rows
    ]
    path = out / f"{name}.html"
    if path.is_file() and not is_contact_sheet(path):
        name = "slides"
    return write_contact_sheet(out, cards, _settings(config, tiling, store), name)[0]


def _card(
    out: Path,
    row: Mapping[str, str],
    entries: Mapping[str, Entry],
    bags: Mapping[str, BagInfo] | None,
    config: Config,
    tiling: Tiling,
    lesions: Sequence[Lesion],
) -> SlideCard:
    slide_id = row["slide_id"]
    entry, bag = entries.get(slide_id), (bags or {}).get(slide_id)
    facts = read_overlay(out, slide_id)
    if facts is not None and not _of_this_file(facts, row, entry):
        facts = None
    mpp = _mpp(row)
    other = facts is not None and _shows_other_tiles(facts, bag, tiling)
    laid = None if other else facts  # a count of one tiling never stands beside that of another
    return SlideCard(
        slide_id=slide_id,
        state=_state(entry, bags, bag, facts, laid),
        reason=entry.reason if entry else "",
        message=entry.message if entry else row["reason"],
        picture=overlay_path(out, slide_id) if facts else None,
        link=f"thumbnails/{overlay_path(out, slide_id).name}" if facts else "",
        tiles=bag.n if bag else laid.tiles if laid else None,
        considered=laid.considered if laid else None,
        left_out=_left_out(bag, laid),
        why_left_out=", ".join(left_out_words(fates(bag))) if bag else "",
        lesions=lesion_words(lesions),
        tissue_mm2=facts.tissue_mm2 if facts else None,
        tissue_share=facts.tissue_share if facts else None,
        mpp=mpp,
        mpp_source=row["mpp_source"],
        vendor=row["vendor"],
        reader=row.get("reader", ""),
        site=row.get("site", ""),
        size0=_size(row),
        flags=_flags(facts, laid, mpp, row, config, _left_out(bag, laid), lesions),
    )


def _of_this_file(facts: Overlay, row: Mapping[str, str], entry: Entry | None) -> bool:
    """Return whether the overlay shows the file as it now is, not one that was replaced."""
    now = entry.fingerprint if entry else row.get("fingerprint") or facts.fingerprint
    return facts.fingerprint == now


def _shows_other_tiles(facts: Overlay, bag: BagInfo | None, tiling: Tiling) -> bool:
    """Return whether the tiles drawn are not those of the bag; without a bag, not those asked for.

    Tissue alone shows no tiles, so only beside a bag with tiles it shows others.
    """
    if facts.tiles is None:
        return bag is not None and bag.n > 0
    asked = tiling_facts(tiling)
    return facts.tiling != (bag.provenance.tiling.get("settings") if bag else asked)


def _left_out(bag: BagInfo | None, laid: Overlay | None) -> int:
    """Return how many laid tiles are not in the bag; the bag knows best."""
    if bag is not None and "planned" in bag.counts:
        return bag.counts["planned"] - bag.n
    return laid.left_out if laid else 0


def _state(
    entry: Entry | None,
    bags: Mapping[str, BagInfo] | None,
    bag: BagInfo | None,
    facts: Overlay | None,
    laid: Overlay | None,
) -> State:
    if entry is not None:
        return "quarantined"
    if bags is not None:
        return bag.status if bag else "waiting"
    if facts is None or laid is None:
        return "waiting"
    return "empty" if facts.tiles == 0 or facts.tissue_share == 0 else "done"


def _flags(
    facts: Overlay | None,
    laid: Overlay | None,
    mpp: tuple[float, float] | None,
    row: Mapping[str, str],
    config: Config,
    left_out: int,
    lesions: Sequence[Lesion],
) -> tuple[str, ...]:
    """Return the flags of the tissue method, and what else is not as usual."""
    flags = [flag for flag in facts.flags if flag != "empty"] if facts else []  # a state already
    if mpp and not agree(*mpp):
        flags.append("anisotropic")
    if row["mpp_source"] == "assumed":
        flags.append("assumed mpp")
    if any(lesion.state == "missed" for lesion in lesions):
        flags.append("lesion missed")
    if left_out:
        flags.append("tiles left out")
    if facts is None:
        return tuple(flags)
    if laid is None:
        at = f"at {facts.tiling['mpp']:g} um" if facts.tiling else "without these tiles"
        flags.append(f"drawn {at}")  # by another run; its numbers are not taken
    elif laid.upsampling > 1.0 + 1e-6:
        flags.append("upsampled")
    if facts.overrides:
        flags.append("own tissue settings")
    elif facts.settings != config.tissue.model_dump(mode="json"):
        flags.append("other tissue settings")  # an earlier run's
    return tuple(dict.fromkeys(flags))


def _mpp(row: Mapping[str, str]) -> tuple[float, float] | None:
    for x, y in (("mpp_x", "mpp_y"), ("mpp", "mpp")):  # a table edited by hand has but one
        try:
            return float(row[x]), float(row[y])
        except (KeyError, ValueError):
            continue
    return None


def _size(row: Mapping[str, str]) -> tuple[int, int] | None:
    try:
        return int(row["width"]), int(row["height"])
    except ValueError:
        return None


def _settings(config: Config, tiling: Tiling, store: BagStore | None) -> dict[str, str]:
    """Return what the run was asked for, in the words of its settings."""
    method = config.tissue.method
    params = "".join(f", {key} {value}" for key, value in method.params.items())
    edge_um = tiling.tile_px * tiling.mpp
    settings = {
        "tiles": f"{tiling.tile_px} px at {tiling.mpp:g} µm/px, {edge_um:.4g} µm",
        "stride": "one tile" if tiling.stride_um is None else f"{tiling.stride_um:g} µm",
        "smallest tissue share": f"{tiling.min_tissue:g}",
        "tissue": f"{method.name}{params}, at {config.tissue.mpp:g} µm/px",
        "pieces from": f"{config.tissue.min_area_mm2:g} mm²",
    }
    limits = config.quality.limits
    if limits:
        settings["left out above"] = ", ".join(f"{k} {v:g}" for k, v in limits.items())
    if store is not None:
        settings["bags"] = store.root.name
    return settings
