"""Commands for looking around: demo, doctor, why, list, config."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cyclopts import App

from pipelines.commands.base import COMMON, LOOK, Common, Settings, app


@app.command(group=LOOK)
def demo(*, out: Path = Path("wsi-demo"), seed: int = 0, common: Common = COMMON) -> int:
    """Run the whole of wsi on synthetic slides: no data, no network, under three minutes.

    Draws slides over three sites and three classes, makes bags, trains CE and NCMI, compares
    them, and writes a report to look at.

    Parameters
    ----------
    out
        Folder for everything the demo makes.
    seed
        Seed of slides, splits and training.
    """
    from pipelines.demo import run

    return run(out, seed, common.console())


@app.command(group=LOOK)
def doctor(*, out: Path | None = None, common: Common = COMMON) -> int:
    """Check machine, libraries, device, weights cache and output folder; say how to fix what fails.

    Parameters
    ----------
    out
        Folder where results shall go; checked for space and for atomic renames.
    """
    from pipelines.doctor import run

    return run(out, common.console())


@app.command(group=LOOK)
def why(slide: str, *, out: Path, common: Common = COMMON) -> int:
    """Tell the whole story of one slide: what it is, its states and reasons, attempts and times.

    Exit code 3 when it is quarantined or not done, 2 when no slide has that id.

    Parameters
    ----------
    slide
        Its id, as in OUT/slides.csv; the bare file name is enough where it is unique.
    out
        Output folder of `wsi preprocess`.
    """
    from pipelines.why import run

    return run(slide, out, common.console())


@app.command(name="list", group=LOOK)
def list_(
    what: Literal[
        "encoders", "aggregators", "objectives", "tissue", "stains", "readers", "stores", "metrics"
    ],
    *,
    common: Common = COMMON,
) -> int:
    """List what can be named in the settings, with the settings each has.

    Parameters
    ----------
    what
        Which kind of thing.
    """
    from pipelines.listing import run

    return run(what, common.console())


config = app.command(App(name="config", help="Show settings and what they mean.", group=LOOK))


@config.command(name="show")
def config_show(*settings: Settings, common: Common = COMMON) -> int:
    """Print all settings as they would be used, as YAML that can be edited and given back."""
    from pipelines.config import as_yaml, load_config

    loaded = load_config(settings)
    common.console().result(loaded.model_dump(mode="json"))
    if not common.json:
        print(as_yaml(loaded), end="")
    return 0


@config.command(name="schema")
def config_schema(*, common: Common = COMMON) -> int:
    """Print every setting with type, default and meaning; with --json as JSON Schema."""
    from pipelines.listing import schema

    return schema(common.console())


@app.command(name="schema", group=LOOK)
def schema_(
    what: Literal["metrics", "predictions", "comparison"], *, common: Common = COMMON
) -> int:
    """Print the JSON Schema of what results are written as, for programs that read them.

    Example: wsi schema metrics > metrics.schema.json

    Parameters
    ----------
    what
        metrics.json, the sidecar predictions.json, or comparison.json.
    """
    import json

    from wsi.schemas import read_schema

    print(json.dumps(read_schema(what), indent=1, ensure_ascii=False))
    return 0
