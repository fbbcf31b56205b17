"""Commands that use trained models: predict, explain, export, and models of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from pipelines.commands.base import (
    COMMON,
    LEARN,
    Common,
    Jobs,
    Settings,
    SlidePlaces,
    TileMap,
    app,
)


@app.command(group=LEARN)
def predict(
    run: Path,
    *settings: Settings,
    out: Path,
    bags: Path | None = None,
    slides: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    cohort: Path | None = None,
    fold: Annotated[list[int] | None, Parameter(consume_multiple=True, negative=())] = None,
    seed: Annotated[list[int] | None, Parameter(consume_multiple=True, negative=())] = None,
    out_of_fold: Annotated[bool, Parameter(negative=())] = False,
    explain: Annotated[bool, Parameter(negative=())] = False,
    allow_quarantined: str = "0",
    retry_quarantined: Annotated[bool, Parameter(negative=())] = False,
    jobs: Jobs = 1,
    device: str = "cpu",
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Predict new slides by the mean of a run's models, from raw slides or from bags.

    Slides go through the run's own recipe: encoder and weights, resolution, tissue, tiles. Bags of
    another recipe are refused. Labels are not read: `wsi evaluate OUT` scores the predictions
    afterwards, by the table given as --cohort here or there. Exit code 3 when slides could not be
    predicted.

    Example: wsi predict RUN --slides DIR --out OUT

    Parameters
    ----------
    run
        Run folder of `wsi train`.
    settings
        slides.*, limits.*, store, and where files of the recipe lie, such as encoder.weights.
    out
        Folder for predictions.csv, predictions_by_model.csv and bags; a rerun goes on.
    bags
        Folder of bags of the run's recipe, in place of slides.
    slides
        Folders, slide files or a CSV with path (patient_id, site, mpp); settings may follow.
    cohort
        Table of the slides to predict, with patients and sites: external validation.
    fold
        Only the models of these folds.
    seed
        Only the models of these seeds.
    out_of_fold
        Predict a slide of the run only by models that trained neither on it nor on its patient.
    explain
        Write OUT/pages/<id>.html: slide, tissue, prediction with spread, evidence, top tiles.
    allow_quarantined
        Exit 0 with up to this many slides not predicted, a number or a share: 5 or 2%.
    retry_quarantined
        Try slides again that failed before and have not changed.
    jobs
        Processes that read slides side by side.
    device
        Where encoder and models run: cpu, cuda, cuda:1.
    dry_run
        Say what would be done.
    """
    from pipelines.config import paths_and_settings, together
    from pipelines.predict import run as predict_run
    from pipelines.predict_slides import Options

    places, more = paths_and_settings(slides or ())
    options = Options(
        run=run,
        out=out,
        bags=bags,
        slides=places,
        folds=tuple(fold or ()),
        seeds=tuple(seed or ()),
        out_of_fold=out_of_fold,
        explain=explain,
        settings=tuple(together(settings, more)),
        jobs=jobs,
        device=device,
        allow_quarantined=allow_quarantined,
        retry_quarantined=retry_quarantined,
        dry_run=dry_run,
        cohort=cohort,
    )
    return predict_run(options, common.console(None if dry_run else out / "predict.log"))


@app.command(group=LEARN)
def explain(
    run: Path,
    *,
    slides: SlidePlaces,
    out: Path,
    slide: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    target: str | None = None,
    against: str = "others",
    map: Annotated[list[TileMap] | None, Parameter(consume_multiple=True, negative=())] = None,
    bags: Path | None = None,
    annotations: Path | None = None,
    smooth: Annotated[float, Parameter(validator=Number(gte=0))] = 0.0,
    jobs: Jobs = 1,
    device: str = "cpu",
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    common: Common = COMMON,
) -> int:
    """Show where on slides the evidence for a class is: maps in nats, top tiles, QuPath files.

    A slide of the run is explained by the models that never trained on it, any other one with a
    bag by the mean of all. Tiles sum to the logit exactly for mean and attention pooling with a
    linear head; what is approximate says so. A rerun continues. Exit code 3 when slides fail or
    have no bag.

    Example: wsi explain RUN --slides DIR --out OUT --against runner-up

    Parameters
    ----------
    run
        Run folder of `wsi train`.
    slides
        Folders, slide files or a CSV; slides without a bag are left out.
    out
        Folder for <id>.png, .csv and .geojson, top_tiles, summary.json and index.html.
    slide
        Only these slides, by id.
    target
        The class to explain; the predicted one when not given.
    against
        What it is held against: others (their mean), least, runner-up, or a class.
    map
        What to draw; the first one as <id>.png, others in folders of their own.
    bags
        Folder of bags of the run's recipe, when not those it was trained on.
    annotations
        Lesion outlines by slide, drawn and scored; <id>.geojson beside slides when not given.
    smooth
        Smooth pictures, not numbers, by a Gaussian of so many tiles.
    jobs
        Processes that read slides side by side.
    device
        Where the model runs: cpu, cuda, cuda:1, mps.
    dry_run
        Say what would be explained, and by which models.
    """
    from pipelines.explain import run as explain_run
    from pipelines.explain_plan import Options
    from wsi.explain import Question

    options = Options(
        run=run,
        slides=tuple(slides),
        out=out,
        only=tuple(slide or ()),
        question=Question(target, against),
        maps=tuple(dict.fromkeys(map or ("contrast",))),
        bags=bags,
        annotations=annotations,
        smoothing=smooth,
        jobs=jobs,
        device=device,
        dry_run=dry_run,
    )
    return explain_run(options, common.console())


@app.command(group=LEARN)
def export(
    run: Path,
    *,
    out: Path,
    fold: int | None = None,
    seed: int | None = None,
    common: Common = COMMON,
) -> int:
    """Write one model as an ONNX file, which runs without wsi: a bag's features to probabilities.

    Standardisation and decision rule are inside; the number of tiles is open. The file is written
    only when it gives what torch gives, on bags of 1, 7 and 500 tiles. Needs the extra onnx.

    Example: wsi export RUN --out model.onnx --fold 0 --seed 0

    Parameters
    ----------
    run
        Run folder of `wsi train`.
    out
        The file to write; classes and recipe are in its metadata.
    fold
        Of this fold, where the run has several.
    seed
        Of this seed, where the run has several.
    """
    from pipelines.export import Options
    from pipelines.export import run as export_run

    return export_run(Options(run, out, fold, seed), common.console())


model = app.command(App(name="model", help="Take over models of other tools.", group=LEARN))


@model.command(name="import")
def model_import(
    file: Path,
    *,
    tool: Annotated[Literal["clam", "mil-lab"], Parameter(name="--from")],
    classes: str,
    bags: Path,
    out: Path,
    common: Common = COMMON,
) -> int:
    """Make a run folder of CLAM's or MIL-Lab's weights, for wsi predict and wsi explain.

    Attention models with one layer before and one classifier after, gated or plain, and CLAM's
    with a branch per class; anything else is refused with the names that have no place. Nothing
    in the file is executed.

    Example: wsi model import s_0_checkpoint.pt --from clam --classes normal,tumour --bags DIR
    --out RUN

    Parameters
    ----------
    file
        A state dict: .pt of torch 1.6 or later, or .safetensors.
    tool
        The tool that trained it.
    classes
        Names of the classes, in the order it was trained with: a,b,c.
    bags
        Bags of the encoder and tiling it was trained on, own or imported; one is enough.
    out
        Run folder; made new.
    """
    from pipelines.model_import import Options, run

    names = tuple(name.strip() for name in classes.split(","))
    return run(Options(file, tool, names, bags, out), common.console())
