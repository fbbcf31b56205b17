"""`MILClassifier`: the toolkit's models, objectives and loop as a scikit-learn classifier."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from wsi.classifier import labels, stored
from wsi.classifier.inputs import Bags
from wsi.classifier.settings import config_of, refuse_unknown, seed_of, validation_of
from wsi.cohorts import SlideRow
from wsi.errors import BagMismatchError, CohortError, ConfigError
from wsi.evaluation.metrics import monitored
from wsi.specs import ValidationSpec
from wsi.splits import validation_part
from wsi.training import FitResult, Model, build, fit
from wsi.training.checkpoint import Origin
from wsi.training.devices import check_device
from wsi.training.predict import Predicted, predict

Array = np.ndarray


class MILClassifier(ClassifierMixin, BaseEstimator):
    """Bags of tile features to classes, one label per bag.

    Bags are a list of arrays (N, D) of any number type, tensors, an array of such, bags of
    `wsi.bags`, or `wsi.StoredBags`, which are read as they are needed. Labels are of any kind;
    `classes_` are sorted. It does what `wsi train` does for one fold and seed.

    Args:
        aggregator: bag to embedding, by name; see `wsi list aggregators`.
        objective: loss and decision rule, by name; see `wsi list objectives`.
        aggregator_params, objective_params: their own settings by name.
        epochs, lr, weight_decay, warmup_epochs, clip, standardise, bags_per_step, max_tiles,
            tiles_per_batch, precision, ema, monitor, patience: of the loop, as `fit.*` in the
            settings.
        validation: share of the groups held out of training to choose the epoch, stratified; None
            for none, and the last epoch then stands.
        random_state: seed of weights, order, draws and the validation part; None for a new one.
        device: `cpu`, `cuda`, `cuda:<index>` or `mps`.

    Attributes:
        classes_: (C,) labels in the order of probabilities.
        model_: the trained `wsi.training.Model`.
        history_: one row per epoch, see `wsi.training.FitResult`.
        best_epoch_: the epoch whose weights stand.
        validation_: indices of the bags that were held out, sorted; None without validation.
        n_features_in_: features per tile, D.
        recipe_: key of what the bags were made with, where they came from a store; else empty.
    """

    def __init__(
        self,
        aggregator: str = "abmil",
        objective: str = "ce",
        *,
        aggregator_params: dict[str, Any] | None = None,
        objective_params: dict[str, Any] | None = None,
        epochs: int = 30,
        lr: float = 1e-4,
        weight_decay: float = 1e-5,
        warmup_epochs: float = 1.0,
        clip: float | None = 1.0,
        standardise: bool = True,
        bags_per_step: int = 1,
        max_tiles: int | None = None,
        tiles_per_batch: int = 65_536,
        precision: str = "auto",
        ema: float | None = None,
        monitor: str = "auc",
        patience: int = 10,
        validation: float | None = 0.2,
        random_state: Any = 0,
        device: str = "cpu",
        **unknown: Any,
    ) -> None:
        refuse_unknown(unknown, self._get_param_names())
        self.aggregator = aggregator
        self.objective = objective
        self.aggregator_params = aggregator_params
        self.objective_params = objective_params
        self.epochs = epochs
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_epochs = warmup_epochs
        self.clip = clip
        self.standardise = standardise
        self.bags_per_step = bags_per_step
        self.max_tiles = max_tiles
        self.tiles_per_batch = tiles_per_batch
        self.precision = precision
        self.ema = ema
        self.monitor = monitor
        self.patience = patience
        self.validation = validation
        self.random_state = random_state
        self.device = device

    def set_params(self, **params: Any) -> MILClassifier:
        """Set parameters and return the classifier.

        Raises:
            ConfigError: it has no such parameter; the nearest is suggested.
        """
        refuse_unknown(params, self._get_param_names())
        return super().set_params(**params)

    def fit(self, bags: Any, y: Any, groups: Any = None) -> MILClassifier:
        """Train on bags and labels, and return the classifier.

        Args:
            bags: n bags.
            y: n labels.
            groups: n patients; a group is wholly in training or wholly held out. Every bag is one
                of its own when not given.

        Raises:
            ConfigError: parameters, labels or groups that cannot be used.
            CohortError: no group can be held out.
            BagError: a bag is empty or has other features than the rest.
            TrainingError: training diverges.
        """
        config = config_of(self.get_params(deep=False))
        check_device(self.device)
        given = Bags.of(bags)
        values = labels.as_list(y, "labels", len(given))
        classes = labels.classes_of(values)
        codes, names = labels.codes_of(values, classes), tuple(map(str, classes.tolist()))
        seed = seed_of(self.random_state)
        rows = _rows(given, [names[code] for code in codes], groups)
        held_out = _held_out(rows, validation_of(self.validation), seed)
        kept = sorted(set(range(len(rows))) - set(held_out or ()))
        train = given.dataset(kept, [codes[k] for k in kept], given.dim)
        val = given.dataset(held_out, [codes[k] for k in held_out], given.dim) if held_out else None
        counts = [sum(codes[k] == code for k in kept) for code in range(len(names))]
        model = build(config, given.dim, names, counts, seed=seed)
        score = monitored(config.fit.monitor)
        result = fit(model, train, val, config.fit, seed=seed, score=score, device=self.device)
        self._keep(model, result, classes, given.recipe, held_out)
        self._seed = seed
        return self

    def predict_proba(self, bags: Any) -> Array:
        """Return class probabilities (n, C), float64, in the order of `classes_`."""
        return self._predicted(bags).probabilities

    def predict(self, bags: Any) -> Array:
        """Return the likeliest class of each bag, (n,)."""
        chosen = self.predict_proba(bags).argmax(axis=1)
        return self.classes_[chosen]

    def embed(self, bags: Any) -> Array:
        """Return bag embeddings (n, E), float32."""
        return self._predicted(bags).embeddings

    def attention(self, bags: Any) -> list[Array]:
        """Return the attention of each bag's tiles, (N, H) float32, summing to 1 per head.

        Raises:
            ConfigError: the aggregator has none.
        """
        found = self._predicted(bags, attention=True).attention
        if found is None:
            raise ConfigError(f"aggregator {self.aggregator} has no attention — use abmil")
        return list(found)

    def save(self, path: Path | str) -> None:
        """Write parameters, classes and weights to a safetensors file.

        Raises:
            ConfigError: classes that are neither text nor numbers.
        """
        check_is_fitted(self, "model_")
        params = self.get_params(deep=False) | {"random_state": self._seed}
        origin = Origin(self.recipe_, self.best_epoch_, self.monitor, self._monitor)
        stored.write(Path(path), self.model_, origin, params, self.classes_)

    @classmethod
    def load(cls, path: Path | str) -> MILClassifier:
        """Return the classifier in a file of `save`, or in a model.safetensors of `wsi train`.

        Its history stays with the one that was trained.

        Raises:
            TrainingError: the file is no such checkpoint.
        """
        model, origin, params, classes = stored.read(Path(path))
        known = {name: value for name, value in params.items() if name in cls._get_param_names()}
        made = cls(**known)
        made._keep(model, FitResult((), origin.epoch, origin.value), classes, origin.recipe, None)
        made._seed = seed_of(made.random_state)
        return made

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags

    def _keep(
        self,
        model: Model,
        result: FitResult,
        classes: Array,
        recipe: str,
        held_out: Sequence[int] | None,
    ) -> None:
        self.model_ = model
        self.classes_ = classes
        self.history_ = result.history
        self.best_epoch_ = result.best_epoch
        self.validation_ = None if held_out is None else np.array(held_out)
        self.n_features_in_ = model.card.dim
        self.recipe_ = recipe
        self._monitor = result.monitor

    def _predicted(self, bags: Any, *, attention: bool = False) -> Predicted:
        check_is_fitted(self, "model_")
        check_device(self.device)
        given = Bags.of(bags)
        if given.recipe and self.recipe_ and given.recipe != self.recipe_:
            raise BagMismatchError(
                f"{given.names[0]} was made by another recipe (encoder, resolution, tissue ...) "
                "than the bags trained on — use bags of that recipe"
            )
        data = given.dataset(range(len(given)), None, self.n_features_in_)
        return predict(self.model_, data, self.device, attention=attention)


def _rows(given: Bags, names: Sequence[str], groups: Any) -> list[SlideRow]:
    """Return name, group and class of every bag."""
    owners = labels.as_list(given.owners if groups is None else groups, "groups", len(given))
    return [
        SlideRow(bag, str(owner), label=name)
        for bag, owner, name in zip(given.names, owners, names, strict=True)
    ]


def _held_out(
    rows: list[SlideRow], validation: ValidationSpec | None, seed: int
) -> list[int] | None:
    """Return the indices of the bags whose groups are held out, sorted; None without validation."""
    if validation is None:
        return None
    ordered = sorted(rows, key=lambda row: (row.patient_id, row.slide_id))
    try:
        chosen = validation_part(ordered, validation, seed, 0)
    except CohortError:
        raise CohortError(
            "no class has bags of two groups or more, so none can be held out for validation — "
            "add bags, or set validation=None"
        ) from None
    held_out = [k for k, row in enumerate(rows) if row.slide_id in chosen]
    _look_at_classes({str(row.label) for row in rows}, {str(rows[k].label) for k in held_out})
    return held_out


def _look_at_classes(classes: set[str], present: set[str]) -> None:
    """Raise CohortError, or warn, where classes are not among the bags held out."""
    what_to_do = "add bags, raise validation, or set validation=None"
    if len(present) < 2:
        raise CohortError(
            f"bags of class {', '.join(present)} only would be held out, for want of groups, and "
            f"the epoch cannot be chosen by one class — {what_to_do}"
        )
    if present < classes:
        warnings.warn(
            f"no bag of class {', '.join(sorted(classes - present))} is held out, for want of "
            f"groups: the epoch is chosen by the other classes — {what_to_do}",
            UserWarning,
            stacklevel=4,
        )
