"""What `wsi explain` writes of each slide, and how a rerun knows what is done."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from shapely.geometry import box

from wsi.errors import ConfigError
from wsi.explain import MapName, TileMaps
from wsi.explain.heatmap import colours, scale_end
from wsi.files import file_name_of, publish, publish_bytes, publish_json
from wsi.geojson import Shape, write_geojson

SCHEMA = "wsi-explain/1"
COLUMNS = (
    "slide_id",
    "x",
    "y",
    "w0",
    "h0",
    "attention",
    "evidence",
    "contrast",
    "pmi",
    "leave_one_out",
)
LARGEST_PLAIN = 50_000_000  # bytes of a GeoJSON; QuPath opens larger ones zipped

_MARK = "explain.json"


@dataclass(frozen=True)
class ExplainDir:
    """Paths of an output folder; maps beside the first have folders of their own."""

    root: Path

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def page(self) -> Path:
        return self.root / "index.html"

    def picture(self, slide_id: str, name: MapName, first: MapName) -> Path:
        """Return where a map of a slide is drawn."""
        folder = self.root if name == first else self.root / name
        return folder / f"{file_name_of(slide_id)}.png"

    def table(self, slide_id: str) -> Path:
        """Return the table of a slide's tiles."""
        return self.root / f"{file_name_of(slide_id)}.csv"

    def geojson(self, slide_id: str) -> Path:
        """Return the tiles of a slide for QuPath; zipped, the name ends in `.zip`."""
        return self.root / f"{file_name_of(slide_id)}.geojson"

    def facts(self, slide_id: str) -> Path:
        """Return the facts of a slide, written last: what has them is done."""
        return self.root / "facts" / f"{file_name_of(slide_id)}.json"

    def gallery(self, name: str) -> Path:
        """Return where the top tiles of a class are drawn."""
        return self.root / "top_tiles" / f"{file_name_of(name)}.jpg"

    def check(self, settings: dict[str, Any]) -> None:
        """Raise ConfigError unless the folder is new, or holds maps of the same settings."""
        mark = self.root / _MARK
        if not mark.is_file():
            if self.root.is_dir() and any(p.name != "log" for p in self.root.iterdir()):
                raise ConfigError(
                    f"{self.root} is not empty and holds no maps — give another --out"
                )
            return
        try:
            held = json.loads(mark.read_text(encoding="utf-8"))
        except ValueError:
            held = {}
        changed = [key for key, value in settings.items() if held.get(key) != value]
        if changed:
            raise ConfigError(
                f"{self.root} holds maps of other settings ({', '.join(changed)}) — "
                "give another --out"
            )

    def begin(self, settings: dict[str, Any]) -> None:
        """Mark the folder as one of these settings."""
        publish_json(self.root / _MARK, settings)

    def kept(self, slide_id: str, key: str) -> dict[str, Any] | None:
        """Return the facts of a slide that an earlier run has done from the same; else None."""
        try:
            facts = json.loads(self.facts(slide_id).read_text(encoding="utf-8"))
            whole = all((self.root / name).is_file() for name in facts["files"])
            return facts if facts["key"] == key and whole else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def write_tiles(path: Path, maps: TileMaps) -> None:
    """Write one row per tile, raw values in nats; empty where there is none."""
    n = len(maps.xy0)
    columns = {
        "slide_id": [maps.slide_id] * n,
        "x": maps.xy0[:, 0],
        "y": maps.xy0[:, 1],
        "w0": np.full(n, maps.size0[0]),
        "h0": np.full(n, maps.size0[1]),
        "attention": maps.attention,
        "evidence": maps.evidence,
        "contrast": maps.contrast,
        "pmi": np.full(n, np.nan) if maps.pmi is None else maps.pmi,
        "leave_one_out": maps.leave_one_out,
    }
    text = pd.DataFrame(columns)[list(COLUMNS)].to_csv(
        index=False, lineterminator="\n", float_format="%.9g"
    )
    publish_bytes(path, text.encode())


def write_shapes(path: Path, maps: TileMaps, name: MapName, origin0: tuple[int, int]) -> Path:
    """Write the tiles for QuPath with all values as measurements; return the file, plain or zip."""
    shapes = _shapes(maps, name)
    write_geojson(path, shapes, origin0)
    zipped = path.with_name(path.name + ".zip")
    if path.stat().st_size <= LARGEST_PLAIN:
        zipped.unlink(missing_ok=True)
        return path
    with publish(zipped) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as z:
        z.write(path, path.name)
    path.unlink()
    return zipped


def _shapes(maps: TileMaps, name: MapName) -> list[Shape]:
    shown = maps.values(name)
    rgb = np.rint(colours((shown / scale_end(shown)).clip(-1, 1))).astype(int)
    measured = {
        "attention": maps.attention,
        "evidence (nats)": maps.evidence,
        "contrast (nats)": maps.contrast,
        "leave-one-out (nats)": maps.leave_one_out,
    }
    if maps.pmi is not None:
        measured["PMI (nats)"] = maps.pmi
    w, h = maps.size0
    shapes = []
    for i, (x, y) in enumerate(maps.xy0.tolist()):
        values = {key: float(v[i]) for key, v in measured.items() if np.isfinite(v[i])}
        r, g, b = rgb[i].tolist()
        kind = f"for {maps.target}" if shown[i] >= 0 else f"against {maps.target}"
        shapes.append(Shape(box(x, y, x + w, y + h), kind, (r, g, b), "tile", values))
    return shapes
