"""`wsi bags verify`: what is wrong with a folder of bags, and putting it out of the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.console import Console, counted
from wsi.bags import BagStore, Finding, any_store, find_stale, set_aside
from wsi.bags.sidecar import CORRUPT, SUFFIX, sidecar_paths
from wsi.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """What the command line decides."""

    folder: Path
    quick: bool = False
    repair: bool = False
    slides: Path | None = None
    dry_run: bool = False


def verify_bags(options: Options, console: Console) -> int:
    """Print every damaged bag and stray file; 5 when a bag is damaged or gone."""
    if options.dry_run and not options.repair:
        raise ConfigError("--dry-run: verify changes nothing of itself — add --repair")
    store = any_store(options.folder)
    total = len(sidecar_paths(store.root))
    with console.progress("bags", total) as track:
        findings = list(store.verify_all(quick=options.quick, looked=track.advance))
    if options.slides is not None:
        findings += _of_slides(store, options.slides)
    moved = [_moved(store, finding, options) for finding in findings]
    if findings:
        rows = ([f.state, f.name, f.message] for f in findings)
        console.table(["state", "slide", "finding"], rows, str(store.root))
    pairs = zip(findings, moved, strict=True)
    console.result([asdict(finding) | {"moved": names} for finding, names in pairs])
    _say(store, total, findings, options, console)
    if options.repair:
        _say_moved(store, sum(map(len, moved)), options, console)
    states = {finding.state for finding in findings}
    return 5 if states & {"corrupt", "missing"} else 0


def _of_slides(store: BagStore, slides: Path) -> Iterator[Finding]:
    from pipelines.survey import listed_slides  # knows slide formats, which takes a second

    files = {file.slide_id: file.path for file in listed_slides((slides,)).files}
    quarantined = _quarantined(store.root)
    for finding in find_stale(store, files):
        if finding.state == "stale" or finding.name not in quarantined:
            yield finding


def _quarantined(root: Path) -> Collection[str]:
    """Return the slides that the run which made these bags has quarantined."""
    from pipelines.quarantine import Quarantine

    return Quarantine(root.resolve().parent.parent).entries()


def _moved(store: BagStore, finding: Finding, options: Options) -> list[str]:
    return set_aside(store, finding, dry_run=options.dry_run) if options.repair else []


def _say(
    store: BagStore, total: int, findings: Sequence[Finding], options: Options, console: Console
) -> None:
    bad = {name for finding in findings for name in finding.files if name.endswith(SUFFIX)}
    counts = Counter(finding.state for finding in findings)
    states = [f"{total - len(bad)} ok", *(f"{n} {state}" for state, n in counts.items())]
    how = "sidecars and sizes" if options.quick else "every byte"
    console.say(f"{counted(total, 'bag')} in {store.root}, {how}: {', '.join(states)}")


def _say_moved(store: BagStore, n: int, options: Options, console: Console) -> None:
    would = "would be moved" if options.dry_run else "moved"
    then = " — rerun `wsi preprocess` to make these bags again" if n else ""
    console.say(f"{counted(n, 'file')} {would} to {store.root / CORRUPT}{then}")
