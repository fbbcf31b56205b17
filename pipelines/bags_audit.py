"""`wsi bags audit`: what folders of features really hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipelines.at_hand import slides_at_hand
from pipelines.console import Console
from wsi.bags import BagStore, open_store
from wsi.bags.foreign import (
    Audited,
    Given,
    audit_archive,
    audit_store,
    layout_at,
    open_archive,
    summed_up,
)
from wsi.bags.sidecar import sidecar_paths
from wsi.errors import ConfigError
from wsi.findings import Finding, errors_among
from wsi.slides import SlideInfo

Item = Audited | Finding


@dataclass(frozen=True)
class AuditOptions:
    """What the command line decides of an audit."""

    folder: Path
    layout: str | None = None
    given: Given = field(default_factory=Given)
    slides: tuple[Path, ...] = ()
    recompute: int = 0
    device: str = "cpu"
    settings: tuple[str, ...] = ()
    dry_run: bool = False


def audit_bags(options: AuditOptions, console: Console) -> int:
    """Print what is found; 5 when there is an error."""
    _check(options)
    slides = slides_at_hand(options.slides, console)
    store = None if options.layout else _store_at(options.folder)
    found: list[Item] = []
    items, total = _items(options, store, slides)
    with console.progress("auditing", total) as track:
        for item in items:
            found.append(item)
            track.advance()
    findings = summed_up(found)
    if options.recompute:
        findings += _recomputed(options, store, slides, console)
    return _show(findings, sum(isinstance(item, Audited) for item in found), options, console)


def _check(options: AuditOptions) -> None:
    if not options.folder.is_dir():
        raise ConfigError(f"{options.folder}: no such folder — check the path")
    if options.recompute and not options.slides:
        raise ConfigError("--recompute embeds tiles of slides — say where they are by --slides")
    if options.settings and not options.recompute:
        raise ConfigError(f"{options.settings[0]} acts with --recompute only — leave it out")


def _store_at(folder: Path) -> BagStore | None:
    ours = sidecar_paths(folder) or any(sidecar_paths(p) for p in folder.iterdir() if p.is_dir())
    return open_store(folder) if ours else None


def _items(
    options: AuditOptions, store: BagStore | None, slides: Mapping[str, SlideInfo]
) -> tuple[Iterator[Item], int]:
    if store is not None:
        return audit_store(store, slides), len(store.infos())
    layout = options.layout or layout_at(options.folder)
    archive = open_archive(layout, options.folder, options.given)
    return audit_archive(archive, slides), len(archive.files())


def _recomputed(
    options: AuditOptions,
    store: BagStore | None,
    slides: Mapping[str, SlideInfo],
    console: Console,
) -> list[Finding]:
    if store is None:
        raise ConfigError(
            f"{options.folder}: --recompute writes into sidecars what it finds — import the "
            "archive first, `wsi bags import --in-place` copies nothing"
        )
    from pipelines.recompute import recompute  # embedding needs torch

    return recompute(
        store,
        slides,
        options.recompute,
        options.settings,
        console,
        device=options.device,
        dry_run=options.dry_run,
    )


def _show(findings: Sequence[Finding], slides: int, options: AuditOptions, console: Console) -> int:
    if findings:
        rows = ([f.severity, f.rule, f.message] for f in findings)
        console.table(["severity", "rule", "finding"], rows, options.folder.name)
    console.result([asdict(finding) for finding in findings])
    errors = errors_among(findings)
    console.say(
        f"{options.folder}: {slides} slides audited, {len(errors)} errors, "
        f"{len(findings) - len(errors)} other findings"
    )
    return 5 if errors else 0
