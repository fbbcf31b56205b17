"""Commands about bags: look at, check, pack, convert, import, audit, relink."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from pipelines.commands.base import (
    COMMON,
    DATA,
    Common,
    ForeignLayout,
    PositiveMpp,
    Settings,
    SlidePlaces,
    app,
)

bags = app.command(App(name="bags", help="Look at, check and convert bags.", group=DATA))


@bags.command(name="ls")
def bags_ls(folder: Path, *, common: Common = COMMON) -> int:
    """List the bags of a folder: tiles, width, encoder, tiling.

    Parameters
    ----------
    folder
        A recipe folder, or the folder of recipes while it holds one.
    """
    from pipelines.bags import list_bags

    return list_bags(folder, common.console())


@bags.command(name="verify")
def bags_verify(
    folder: Path,
    *,
    quick: Annotated[bool, Parameter(negative=())] = False,
    repair: Annotated[bool, Parameter(negative=())] = False,
    slides: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Check every byte of every bag; exit code 5 and names when one is damaged or gone.

    States: corrupt, missing (a sidecar without its bag), stale (the slide was replaced), orphan
    (a bag without sidecar), temp (an unfinished file). What is not named is ok.

    Parameters
    ----------
    folder
        A recipe folder, or the folder of recipes while it holds one.
    quick
        Look at sidecars and sizes only: thousands of bags a second.
    repair
        Move what is no good to FOLDER/corrupt: preprocess makes it again. Not during a run.
    slides
        Folder or table of slides: names bags of replaced slides and slides without one.
    dry_run
        With --repair: say what would be moved.
    """
    from pipelines.verify import Options, verify_bags

    return verify_bags(Options(folder, quick, repair, slides, dry_run), common.console())


@bags.command(name="pack")
def bags_pack(
    folder: Path,
    *,
    out: Path | None = None,
    ids: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Copy all bags into a few flat files that training maps into memory.

    `wsi train` uses them when they lie in FOLDER/packed and agree with the bags; when a bag was
    changed, added or removed, it says so and reads the bags. Run it again then.

    Parameters
    ----------
    folder
        A recipe folder, or the folder of recipes while it holds one.
    out
        Folder for the packed cohort; by default `packed` inside the recipe folder.
    ids
        Table with a slide_id column: pack only these.
    dry_run
        Say how many bags, tiles and bytes.
    """
    from pipelines.pack import Options, pack_bags

    return pack_bags(Options(folder, out, ids, dry_run), common.console())


@bags.command(name="convert")
def bags_convert(
    folder: Path,
    *,
    to: Literal["h5", "zarr", "clam", "trident"],
    out: Path,
    common: Common = COMMON,
) -> int:
    """Write the bags of a folder in another file format, or as another tool's archive.

    Nothing is lost between h5 and zarr. CLAM gets h5_files/, pt_files/ and patches/, TRIDENT its
    job folder; a table slide_ids.csv says which slide each file is of. What is done is kept.

    Parameters
    ----------
    folder
        A recipe folder, or the folder of recipes while it holds one.
    to
        File format or layout to write.
    out
        Folder for the converted bags.
    """
    if to in ("clam", "trident"):
        from pipelines.foreign import export_bags

        return export_bags(folder, to, out, common.console())
    from pipelines.bags import convert_bags

    return convert_bags(folder, to, out, common.console())


@bags.command(name="import")
def bags_import(
    source: Path,
    *,
    from_: ForeignLayout,
    out: Path,
    in_place: Annotated[bool, Parameter(negative=())] = False,
    encoder: str | None = None,
    mpp: PositiveMpp | None = None,
    tile_px: Annotated[int, Parameter(validator=Number(gte=1))] | None = None,
    tile_mpp: PositiveMpp | None = None,
    slides: SlidePlaces | None = None,
    allow_nonfinite: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Take the features of another tool as bags: copied, or left where they are.

    Files are read with care: those with links, claims beyond their size or anything to execute are
    refused by name, and the others go on; the exit code is then 3. Encoders are as declared, so
    that such bags never mix with own ones before `wsi bags audit --recompute` verifies them.

    Example: wsi bags import DIR --from stamp --out BAGS --in-place --slides SLIDES

    Parameters
    ----------
    source
        The archive, as its tool wrote it.
    from_
        Whose layout it has.
    out
        Folder for the bags of this archive.
    in_place
        Copy nothing: write sidecars that point at the archive.
    encoder
        Name of the encoder, which CLAM does not store, or which of several to take.
    mpp
        um per level-0 pixel, for slides that are not given by --slides.
    tile_px
        Edge of CLAM's tiles in pixels, where there is no patches/ folder.
    tile_mpp
        um per pixel of CLAM's tiles, where they are not of level 0 and patches/ is not there.
    slides
        Folders, slide files or a CSV: resolution and fingerprint of each slide enter its bag.
    allow_nonfinite
        Leave out and count rows with NaN or infinite features, in place of refusing the slide.
    dry_run
        Say what would be imported.
    """
    from pipelines.foreign import ImportOptions, import_bags
    from wsi.bags.foreign import Given

    given = Given(encoder, mpp, tile_px, tile_mpp)
    options = ImportOptions(
        from_, source, out, given, tuple(slides or ()), in_place, allow_nonfinite, dry_run
    )
    return import_bags(options, common.console())


@bags.command(name="audit")
def bags_audit(
    folder: Path,
    *settings: Settings,
    from_: ForeignLayout | None = None,
    slides: SlidePlaces | None = None,
    encoder: str | None = None,
    mpp: PositiveMpp | None = None,
    recompute: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    device: str = "cpu",
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Tell what an archive really holds: fields of view, bad rows, mixtures; 5 on errors.

    With --recompute, tiles of an imported archive are embedded again: where they agree (cosine of
    0.999), its bags become verified, so that own bags of the same recipe may join; where not, the
    likely cause is named.

    Example: wsi bags audit BAGS --recompute 10 --slides SLIDES encoder=resnet50

    Parameters
    ----------
    folder
        Bags, imported or own, or an archive of another tool.
    from_
        Whose layout an archive has, where its folders do not tell.
    slides
        Folders, slide files or a CSV: they give the true field of view of each slide.
    encoder
        Which of several encoders of an archive to look at.
    mpp
        um per level-0 pixel, for slides that are not given by --slides.
    recompute
        Embed 32 tiles of up to so many slides again.
    device
        Where the encoder runs: cpu, cuda, cuda:1, mps.
    dry_run
        With --recompute: compare, and change no bag.
    """
    from pipelines.bags_audit import AuditOptions, audit_bags
    from wsi.bags.foreign import Given

    given = Given(encoder, mpp)
    options = AuditOptions(
        folder, from_, given, tuple(slides or ()), recompute, device, settings, dry_run
    )
    return audit_bags(options, common.console())


@bags.command(name="relink")
def bags_relink(
    folder: Path,
    *,
    slides: SlidePlaces,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Give bags the new ids of slides that were moved or renamed; nothing is computed.

    Slides are known by their content. What could mean several is refused by name; exit code 3.

    Parameters
    ----------
    folder
        A recipe folder, or the folder of recipes while it holds one.
    slides
        Folders, slide files or a CSV, as they are now.
    dry_run
        Say what would be renamed.
    """
    from pipelines.relink import relink_bags

    return relink_bags(folder, tuple(slides), dry_run, common.console())
