"""Every setting of the toolkit: the YAML keys, the `key=value` overrides and the Python API.

The models are frozen and refuse unknown keys. Parameters of an aggregator, objective or tissue
method are not repeated here: they are the keyword-only arguments of the class or function itself
(see `wsi.registry`), written as `aggregator: {name: abmil, hidden: 128}`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

MPP_RANGE = (0.05, 20.0)
"""Believable resolutions in um per pixel; 352.78 is what a 72-dpi default looks like."""

Auto = Literal["auto"]
Mpp = Annotated[float, Field(ge=MPP_RANGE[0], le=MPP_RANGE[1])]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Spec(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


def _component(value: Any) -> Any:
    if isinstance(value, dict) and "name" not in value:
        raise ValueError("settings of nothing — give a name, too")
    if not isinstance(value, str | dict | Component):
        raise ValueError("give one name, or {name: <name>, <setting>: <value>, ...}")
    return {"name": value} if isinstance(value, str) else value


class Component(BaseModel):
    """A registered thing by name, with its own parameters beside the name."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def params(self) -> dict[str, Any]:
        """Return the parameters given beside the name."""
        return dict(self.model_extra or {})


Named = Annotated[Component, BeforeValidator(_component)]


def _components(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_one_component(each) for each in value)
    return _one_component(value)


def _one_component(value: Any) -> Component:
    if not isinstance(value, str | dict | Component):
        raise ValueError("give a name, a name with settings, or a list of these")
    return Component.model_validate(_component(value))


class SlidesSpec(Spec):
    """How slides are opened and their resolution is settled."""

    no_mpp: Literal["quarantine", "stop", "assume"] = Field(
        default="quarantine", description="what to do with slides without a believable resolution"
    )
    assume_mpp: Mpp | None = Field(
        default=None, description="um per level-0 pixel for such slides, with no_mpp=assume"
    )
    reader: Literal["auto", "openslide"] = Field(
        default="auto",
        description="auto: the fast TIFF reader where it gives OpenSlide's pixels, bit by bit",
    )
    sha256: bool = Field(
        default=False,
        description="record the hash of whole slide files: `wsi bags verify --slides` then finds "
        "any change of a slide, not only a replaced one",
    )
    use_magnification: bool = Field(
        default=False,
        description="allow 10 / objective power as a resolution when nothing better is known",
    )

    @model_validator(mode="after")
    def _assume_needs_a_value(self) -> SlidesSpec:
        if (self.no_mpp == "assume") != (self.assume_mpp is not None):
            raise ValueError("no_mpp=assume and assume_mpp=<um per pixel> go together")
        return self


class PixelsSpec(Spec):
    """What happens to a tile's pixels before the encoder; all of it is part of the recipe."""

    half_dct: bool = Field(
        default=False,
        description="decode JPEG at half size where the tiling is at least twice as coarse as the "
        "level: faster, not bit-exact",
    )
    srgb: bool = Field(
        default=False, description="convert by the slide's colour profile to sRGB, where it has one"
    )
    stain: Annotated[Component, BeforeValidator(_component)] | None = Field(
        default=None, description="stain normalisation and its parameters, fitted per slide"
    )


class TissueSpec(Spec):
    """How tissue is found on a thumbnail."""

    method: Named = Field(
        default=Component(name="od_otsu"), description="tissue method and its parameters"
    )
    mpp: Mpp = Field(default=8.0, description="um per thumbnail pixel the mask is made at")
    min_area_mm2: float = Field(
        default=0.02,
        ge=0,
        description="smallest piece of tissue kept; needle biopsies must survive",
    )
    min_hole_mm2: float = Field(
        default=0.05, ge=0, description="holes smaller than this are filled"
    )


class TilingSpec(Spec):
    """The grid of tiles; `auto` takes what the encoder was trained at."""

    mpp: Mpp | Auto = Field(default="auto", description="um per tile pixel")
    tile_px: Annotated[int, Field(ge=16, le=4096)] | Auto = Field(
        default="auto", description="tile edge in pixels as read"
    )
    stride: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="step between tiles in um; a whole tile when not given"
    )
    min_tissue: Fraction = Field(
        default=0.05, description="smallest tissue fraction of an embedded tile"
    )
    max_upsampling: float = Field(
        default=1.05, ge=1, description="how much coarser than asked a scanner may be"
    )


class ScoreLimits(Spec):
    """The largest score a tile may have, of 0 to 1; all tiles when not given. See `wsi.quality`."""

    max_blur: Fraction | None = Field(
        default=None,
        description="leave out tiles more blurred than this; 0.6 is about 2 pixels of blur",
    )
    max_pen: Fraction | None = Field(
        default=None, description="leave out tiles of which marker ink covers a larger share"
    )
    max_fold: Fraction | None = Field(
        default=None, description="leave out tiles of which a larger share looks folded"
    )

    @property
    def limits(self) -> dict[str, float]:
        """Return the limits that are set, by name of the score."""
        named = {"blur": self.max_blur, "pen": self.max_pen, "fold": self.max_fold}
        return {name: limit for name, limit in named.items() if limit is not None}


class QualitySpec(ScoreLimits):
    """Tiles left out before embedding; all of it is part of the recipe."""


class LimitsSpec(Spec):
    """What reading one slide may take, and what a run may write; no part of the recipe."""

    silence_s: Annotated[float, Field(gt=0)] = Field(
        default=300.0, description="seconds without a tile after which a reader counts as hanging"
    )
    memory_gb: Annotated[float, Field(gt=0)] = Field(
        default=8.0, description="memory that reading one slide may ask for"
    )
    claim_ttl_s: Annotated[float, Field(gt=0)] = Field(
        default=180.0,
        description="seconds without a sign of life after which another machine's slides are "
        "taken over; the same for all processes of an output folder",
    )
    max_gb: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="stop cleanly before bags of a run take more than this"
    )
    max_files: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="stop cleanly before a run has written more bags than this"
    )


class DataSpec(ScoreLimits):
    """Which labels and which tiles are used; limits on scores need no new embedding."""

    label: str = Field(default="label", description="label column of the cohort table")
    classes: tuple[str, ...] | None = Field(default=None, description="class names, in order")
    ordered: bool = Field(
        default=False,
        description="classes are grades, from the least to the most severe: quadratic kappa is "
        "scored, too",
    )
    bag: Literal["slide", "patient"] = Field(
        default="slide",
        description="what one bag is of: a slide, or all slides of a patient, which must have "
        "one label",
    )
    missing: Literal["error", "skip"] = Field(
        default="error", description="what to do with labelled slides that have no bag"
    )
    min_tissue: Fraction = Field(
        default=0.0, description="leave out tiles with less tissue than this"
    )

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> DataSpec:
        if self.classes is not None and len(set(self.classes)) < max(2, len(self.classes)):
            raise ValueError("classes must be at least two different names")
        return self


class ValidationSpec(Spec):
    """How a validation part is taken from the training patients."""

    by: Literal["patient", "site", "slide"] = Field(
        default="patient", description="slide leaks, and is there only to reproduce published rows"
    )
    fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, description="share of the training patients"
    )


class SplitSpec(Spec):
    """How slides are divided into training, validation and test parts."""

    kind: Literal["kfold", "official", "leave-one-site-out", "sites"] = Field(
        default="kfold", description="sites: test on the sites listed in split.test"
    )
    test: tuple[str, ...] = Field(default=(), description="test sites, with kind=sites")
    folds: Annotated[int, Field(ge=2, le=100)] = Field(
        default=5, description="folds, with kind=kfold"
    )
    seed: int = Field(default=0, description="seed of the draw")
    val: ValidationSpec = ValidationSpec()

    @model_validator(mode="before")
    @classmethod
    def _sites_are_text(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("test"), list | tuple):
            data = data | {"test": tuple(str(site) for site in data["test"])}
        return data

    @model_validator(mode="after")
    def _sites_are_given(self) -> SplitSpec:
        if (self.kind == "sites") != bool(self.test):
            raise ValueError("kind=sites and test=[<site>, ...] go together")
        return self


class FitSpec(Spec):
    """The training loop."""

    epochs: Annotated[int, Field(ge=1)] = Field(
        default=30, description="passes over the training bags"
    )
    lr: Annotated[float, Field(gt=0, le=1)] = Field(default=1e-4, description="AdamW's peak rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=1e-5, description="AdamW's")
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="epochs of rising rate; then cosine to 0"
    )
    clip: Annotated[float, Field(gt=0)] | None = Field(
        default=1.0, description="gradient norm limit"
    )
    standardise: bool = Field(
        default=True,
        description="bring each feature to zero mean and unit sd over the training tiles",
    )
    bags_per_step: Annotated[int, Field(ge=1)] = Field(
        default=1, description="bags packed into one optimiser step; 1 reproduces the literature"
    )
    max_tiles: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="tiles drawn per training bag and epoch; all when not given"
    )
    tiles_per_batch: Annotated[int, Field(ge=1)] = Field(
        default=65_536,
        description="tiles computed at once; a step with more takes turns, with the same update",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="in which type training multiplies matrices; auto: bf16 where the device "
        "does so natively and the model is large enough to gain. Validation and predictions are "
        "always of fp32",
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="decay of a moving average of the weights, which then is what is validated "
        "and saved; none when not given",
    )
    seeds: tuple[int, ...] = Field(default=(0,), description="N means 0..N-1, or a list")
    monitor: Literal["auc", "macro_f1", "loss"] = Field(
        default="auc", description="validation figure that picks the checkpoint"
    )
    patience: Annotated[int, Field(ge=1)] = Field(
        default=10, description="epochs without improvement before stopping early"
    )

    @model_validator(mode="before")
    @classmethod
    def _seeds_from_a_count(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("seeds"), int):
            data = data | {"seeds": tuple(range(data["seeds"]))}
        return data

    @model_validator(mode="after")
    def _some_seed(self) -> FitSpec:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must be a count of at least 1, or a list without repeats")
        return self


PatientRule = Literal["mean", "max"]
"""How predictions of slides become one of their patient, see `wsi.evaluation.by_patient`."""


class EvaluateSpec(Spec):
    """Intervals and comparisons."""

    replicates: Annotated[int, Field(ge=100)] = Field(
        default=2000, description="bootstrap replicates"
    )
    level: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.95, description="confidence level")
    seed: int = Field(default=0, description="seed of the resampling")
    patient_rule: PatientRule = Field(
        default="mean",
        description="how `wsi evaluate --level patient` takes slides together: mean of the "
        "probabilities, or max, of the probability of at least a class, for ordered classes",
    )
    floors: bool = Field(
        default=True,
        description="predict the test parts from class frequencies, tile counts, sites and mean "
        "features, too, and score these floors beside the model",
    )


BALANCED_CE = "balanced-ce"


def _arm(value: Any) -> Any:
    if value == BALANCED_CE:
        return {"label": BALANCED_CE, "name": "ce", "weight": "balanced"}
    if isinstance(value, str):
        return {"label": value, "name": value}
    if isinstance(value, dict) and "label" not in value:
        other = value.get("aggregator")
        inner = other.get("name") if isinstance(other, dict) else other
        return {"label": value.get("name") or inner or ""} | value
    return value


class ArmSpec(BaseModel):
    """One of the things a study compares: an objective with its parameters beside its name.

    An arm may set the aggregator, too; without a name it has the objective of the settings.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=60)]
    name: str | None = None
    aggregator: Annotated[Component, BeforeValidator(_component)] | None = None

    @property
    def objective(self) -> Component | None:
        """Return the objective with its parameters, or None to keep that of the settings."""
        if self.name is None:
            return None
        return Component.model_validate({"name": self.name, **(self.model_extra or {})})

    @model_validator(mode="after")
    def _differs_from_the_settings(self) -> ArmSpec:
        if self.name is None and (self.aggregator is None or self.model_extra):
            raise ValueError("an arm needs the name of an objective, or an aggregator")
        return self


def _about_arms(labels: Sequence[str]) -> str:
    counts = Counter(label.lower() for label in labels)
    twice = [label for label, n in counts.items() if n > 1]
    if not twice:
        return f"arms must be two or more, to compare them; there is {', '.join(labels) or 'none'}"
    return (
        f"arms must have different labels, and {', '.join(twice)} is there twice — give one a "
        f"label of its own: {{label: {twice[0]}-2, name: ..., <setting>: ...}}"
    )


Arm = Annotated[ArmSpec, BeforeValidator(_arm)]
_CORE = ("ce", BALANCED_CE, "pc_softmax", "cosine_pc", "ncmi", "ncmi_softmax")


class StudySpec(Spec):
    """What `wsi study` compares, and how it is tuned."""

    arms: tuple[Arm, ...] = Field(
        default=tuple(ArmSpec.model_validate(_arm(name)) for name in _CORE),
        description="objectives by name, or {label: ..., name: ..., <setting>: ...}; an arm may "
        "set an aggregator, too; balanced-ce is ce with weight=balanced",
    )
    rates: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(1e-4, 3e-4, 1e-3, 3e-3), description="learning rates tried for every arm"
    )
    rate_seeds: Annotated[int, Field(ge=1)] = Field(
        default=1, description="how many of the seeds tune the rate"
    )
    least_seeds: Annotated[int, Field(ge=1)] = Field(
        default=8, description="fit.seeds is completed to this many for the final fits"
    )
    selection: tuple[Literal["patient", "site"], ...] = Field(
        default=("patient", "site"),
        description="validation parts by which epochs and rates are chosen, side by side",
    )
    rivals: tuple[str, ...] = Field(
        default=("ce", BALANCED_CE, "pc_softmax"),
        description="arms of which the best on validation is what all others are compared with",
    )
    controls: tuple[str, ...] = Field(
        default=("ce", "cosine_pc"),
        description="arms that those outside study.rivals are compared with, too",
    )
    metrics: tuple[str, ...] = Field(
        default=("macro_f1", "auc", "micro_f1"),
        description="what is compared on the test parts; the first is the headline",
    )
    truth: str | None = Field(
        default=None,
        description="label column that test predictions are scored against, where data.label is "
        "noisy; training and validation never see it",
    )
    keep_models: bool = Field(default=False, description="keep the weights of every fit")

    @model_validator(mode="after")
    def _is_a_comparison(self) -> StudySpec:
        labels = [arm.label for arm in self.arms]
        if len(labels) < 2 or len({label.lower() for label in labels}) < len(labels):
            raise ValueError(_about_arms(labels))
        for name, values in (("rates", self.rates), ("selection", self.selection)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be a list without repeats")
        if not self.metrics:
            raise ValueError("metrics must name at least one")
        return self


class RangeSpec(Spec):
    """Numbers from `low` to `high` that a sweep draws from."""

    low: float
    high: float
    log: bool = Field(default=False, description="draw evenly in the logarithm")
    step: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="only low, low + step, ...; needed for a grid"
    )
    int: bool = Field(default=False, description="whole numbers only")

    @model_validator(mode="after")
    def _can_be_drawn_from(self) -> RangeSpec:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low above 0, and no step")
        given = (self.low, self.high, self.step or 1.0)
        if self.int and not all(float(value).is_integer() for value in given):
            raise ValueError("int needs whole low, high and step")
        steps = (self.high - self.low) / (self.step or (1.0 if self.int else self.high - self.low))
        if abs(steps - round(steps)) > 1e-8 * steps:
            raise ValueError("high must be low and a whole number of steps")
        return self


def _space(value: Any) -> Any:
    """Return ranges and choices by dotted key; keys may also be nested sections."""
    if not isinstance(value, dict):
        raise ValueError("give <setting>: {low: ..., high: ...} or <setting>: [choices]")
    found: dict[str, Any] = {}
    problems = []
    for key, one in value.items():
        try:
            found |= _dimensions(str(key), one)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return found


def _dimensions(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, RangeSpec):
        return {key: value}
    if isinstance(value, list | tuple):
        if len(value) < 2 or len({repr(each) for each in value}) < len(value):
            raise ValueError(f"{key}: choices must be two or more different values")
        return {key: tuple(value)}
    if isinstance(value, dict) and value and not {"low", "high"} & set(value):
        below = [_dimensions(f"{key}.{name}", one) for name, one in value.items()]
        return {name: one for found in below for name, one in found.items()}
    if not isinstance(value, dict):
        raise ValueError(f"{key}: give {{low: ..., high: ...}} or a list of choices, not {value!r}")
    try:
        return {key: RangeSpec.model_validate(value)}
    except ValidationError as error:
        told = (
            "{}: {}".format(".".join(map(str, (key, *e["loc"]))), e["msg"]) for e in error.errors()
        )
        raise ValueError("; ".join(told).replace("Value error, ", "")) from None


class SweepSpec(Spec):
    """Which settings `wsi sweep` searches, and how."""

    space: Annotated[dict[str, RangeSpec | tuple[Any, ...]], BeforeValidator(_space)] = Field(
        default={},
        description="settings of aggregator, objective and fit, each with [choices] or {low, high, "
        "log, step, int}; the rate, the weight decay and the dropout when not given",
    )
    trials: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="settings tried; 30, or all of a grid, when not given"
    )
    sampler: Literal["tpe", "random", "grid"] = Field(
        default="tpe",
        description="tpe learns from the trials before; grid takes every combination in order",
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of the draws")
    prune: bool = Field(
        default=False,
        description="stop a trial whose first folds are worse than the median of others there",
    )


class Config(Spec):
    """All settings of a run."""

    slides: SlidesSpec = SlidesSpec()
    tissue: TissueSpec = TissueSpec()
    tiling: TilingSpec = TilingSpec()
    pixels: PixelsSpec = PixelsSpec()
    quality: QualitySpec = QualitySpec()
    limits: LimitsSpec = LimitsSpec()
    encoder: Annotated[Component | tuple[Component, ...], BeforeValidator(_components)] = Field(
        default=Component(name="texture-v1"),
        description="see `wsi list encoders`; timm:<model>, hf-hub:<org>/<model>; or a list",
    )
    compute: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="what networks compute in; auto: the fastest type native to the device",
    )
    precision: Literal["float16", "float32"] = Field(
        default="float16", description="of stored features"
    )
    store: Literal["h5", "zarr"] = Field(default="h5", description="file format of bags")
    data: DataSpec = DataSpec()
    split: SplitSpec = SplitSpec()
    aggregator: Named = Field(
        default=Component(name="abmil"), description="bag to embedding; see `wsi list aggregators`"
    )
    objective: Named = Field(
        default=Component(name="ce"),
        description="loss and decision rule; see `wsi list objectives`",
    )
    fit: FitSpec = FitSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    study: StudySpec = StudySpec()
    sweep: SweepSpec = SweepSpec()

    @property
    def encoders(self) -> tuple[Component, ...]:
        """Return the encoders, one or several."""
        return self.encoder if isinstance(self.encoder, tuple) else (self.encoder,)

    @model_validator(mode="after")
    def _encoders_are_distinct(self) -> Config:
        names = [encoder.model_dump_json() for encoder in self.encoders]
        if not names or len(set(names)) < len(names):
            raise ValueError("encoder must be a name, or a list of different ones")
        return self
