"""`wsi export`: one model of a run as an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.console import Console
from pipelines.predict_models import run_ensemble
from wsi.errors import ConfigError
from wsi.findings import few


@dataclass(frozen=True)
class Options:
    """What the command line decides; fold and seed are needed where a run has several."""

    run: Path
    out: Path
    fold: int | None = None
    seed: int | None = None


def run(options: Options, console: Console) -> int:
    """Write the model, once it was found to give what torch gives."""
    from wsi.training.onnx_file import TOLERANCE, check_packages, export, write

    check_packages()
    if options.out.suffix != ".onnx" or options.out.is_dir():
        raise ConfigError(f"--out {options.out}: give a file name that ends in .onnx")
    if options.out.exists():
        raise ConfigError(f"{options.out} is there already — give another --out")
    models = run_ensemble(options.run, _one(options.fold), _one(options.seed))
    if len(models.members) != 1:
        have = few(f"fold {m.fold} seed {m.seed}" for m in models.members)
        raise ConfigError(
            f"{options.run} has {len(models.members)} models ({have}) and a file holds one — "
            "choose by --fold and --seed"
        )
    (member,) = models.members
    about = {
        "recipe": dict(models.bags.recipe),
        "recipe_key": models.bags.key,
        "encoder": dict(models.bags.encoder),
        "run": options.run.name,
        "fold": member.fold,
        "seed": member.seed,
        "model_sha256": member.sha256,
    }
    exported = export(models.model(member), about)
    write(options.out, exported)
    console.say(
        f"fold {member.fold} seed {member.seed}: {', '.join(exported.outputs)}; differs from torch "
        f"by at most {exported.error:.1e} on random bags (allowed {TOLERANCE:g})"
    )
    console.say(f"model: {options.out}")
    console.result(
        {
            "model": str(options.out),
            "outputs": list(exported.outputs),
            "max_error": exported.error,
            **about,
        }
    )
    return 0


def _one(number: int | None) -> Sequence[int]:
    return () if number is None else (number,)
