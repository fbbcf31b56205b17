"""The page of results: tables from the studies' results.json, around a reading written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi.errors import ConfigError
from wsi.files import publish_bytes

Json = dict[str, Any]

_TIERS = {
    "core": "Core, developed on",
    "confirm": "Confirmation",
    "classic": "Classic MIL sets",
    "explore": "Exploratory",
}
_PARTS = Path(__file__).with_name("reading")  # text around the tables, by name of the part
_ORDER = ("digit-bags", "digit-images", "cohort", "musk", "elephant", "fox", "tiger")


def write(out: Path, path: Path) -> None:
    """Write the page of all studies below `out` that are complete.

    Raises:
        ConfigError: there is none.
    """
    tiers = {tier: dict(_results(out / "studies" / tier)) for tier in _TIERS}
    if not any(tiers.values()):
        raise ConfigError(f"{out / 'studies'} holds no finished study — run a tier first")
    parts = [_text("head")]
    for tier, title in _TIERS.items():
        if tiers[tier]:
            parts += [f"## {title}", _text(tier), _summary(tiers[tier])]
            parts += [_section(name, study) for name, study in tiers[tier].items()]
    publish_bytes(path, ("\n\n".join(part for part in parts if part) + "\n").encode())


def _results(folder: Path) -> Iterator[tuple[str, Json]]:
    def rank(path: Path) -> tuple[int, str]:
        name = path.parent.name
        return next((k for k, word in enumerate(_ORDER) if name.startswith(word)), 99), name

    for path in sorted(folder.glob("*/results.json"), key=rank):
        yield path.parent.name, json.loads(path.read_text(encoding="utf-8"))


def _text(name: str) -> str:
    path = _PARTS / f"{name}.md"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _summary(studies: Mapping[str, Json]) -> str:
    """Return one table: macro-F1 of every arm less its rival's, by study."""
    columns = [(n, s) for n, study in studies.items() for s in study["selections"]]
    arms = list(dict.fromkeys(a for study in studies.values() for a in _labels(study)))
    header = ["arm", *(_column(name, sel, studies[name]) for name, sel in columns)]
    rows = [[arm, *(_cell(studies[n]["selections"][s], arm) for n, s in columns)] for arm in arms]
    said = (
        "Macro-F1 less the rival's, the best of `ce`, `balanced-ce` and `pc_softmax` on "
        "validation; bold where p after Holm's correction over the arms of that study is below "
        ".05; the rival's own macro-F1 in its row."
    )
    return f"{said}\n\n{table(header, rows)}"


def _labels(study: Json) -> list[str]:
    return [arm if isinstance(arm, str) else arm["label"] for arm in study["arms"]]


def _column(name: str, selection: str, study: Json) -> str:
    return name if len(study["selections"]) == 1 else f"{name}, validation by {selection}"


def _cell(result: Json, arm: str) -> str:
    metric = result["metrics"].get("macro_f1")
    if metric is None:
        return "–"
    if arm == result["rival"]:
        value = next(run["value"] for run in metric["runs"] if run["name"] == arm)
        return f"{value:.3f}"
    found = next((d for d in metric["differences"] if d["name"] == arm), None)
    if found is None:
        return "–"
    text = f"{found['value']:+.3f}".replace("-", "−")
    return f"**{text}**" if found["p_holm"] < 0.05 else text


def _section(name: str, study: Json) -> str:
    minutes = study["fits"]["seconds"] / 60
    rates = ", ".join(f"{rate:g}" for rate in study["rates"])
    seeds = study["seeds"]
    lines = [
        f"### {name}",
        f"{study['slides']} bags, {len(study['classes'])} classes, seeds {seeds[0]} to {seeds[-1]} "
        f"({len(seeds)}), rates {rates}, {study['fits']['all']} fits of {study['epochs']} epochs, "
        f"{study['bags_per_step']} bags per step, {minutes:.0f} minutes of fits one after another.",
    ]
    for selection, result in study["selections"].items():
        if len(study["selections"]) > 1:
            lines.append(f"Validation by {selection}:")
        lines.append(_arms_table(result, edges=len(study["rates"]) > 2))
    return "\n\n".join(lines)


def _arms_table(result: Json, *, edges: bool) -> str:
    f1, auc = result["metrics"]["macro_f1"], result["metrics"]["auc"]
    header = [
        "arm",
        "rate",
        "validation AUC",
        "macro-F1",
        "AUC",
        "macro-F1 less rival",
        "p",
        "Holm",
    ]
    header += [f"less {control}" for control in f1["controls"]]
    rows = []
    for run in f1["runs"]:
        arm = run["name"]
        chosen = result["arms"][arm]
        other = next(r for r in auc["runs"] if r["name"] == arm)
        rows.append(
            [
                f"{arm} (rival)" if arm == result["rival"] else arm,
                f"{chosen['rate']:g}" + (" (edge)" if edges and chosen["edge"] else ""),
                f"{chosen['validation']['monitor']:.3f}",
                _interval(run),
                _interval(other),
                *_difference(f1["differences"], arm),
                *(_difference(rows_, arm)[0] for rows_ in f1["controls"].values()),
            ]
        )
    return table(header, rows)


def _difference(differences: Sequence[Json], arm: str) -> list[str]:
    found = next((d for d in differences if d["name"] == arm), None)
    if found is None:
        return ["", "", ""]
    return [_interval(found, signed=True), f"{found['p']:.3f}", f"{found['p_holm']:.3f}"]


def _interval(score: Json, *, signed: bool = False) -> str:
    if score["value"] is None:
        return "undefined"
    sign = "+" if signed else ""
    text = f"{score['value']:{sign}.3f}"
    if score["low"] is not None and score["high"] is not None:
        text += f" [{score['low']:{sign}.3f}, {score['high']:{sign}.3f}]"
    return text.replace("-", "−")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
