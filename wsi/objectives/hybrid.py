"""A classification head and NCMI on the bag embedding, trained together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from wsi.errors import ConfigError
from wsi.objectives import OBJECTIVES
from wsi.objectives.base import BagOutput, LabelledOutputs, Objective
from wsi.objectives.centre import CentreKind
from wsi.objectives.centroids import CentroidKind
from wsi.objectives.ncmi import NCMI
from wsi.objectives.ncmi_settings import WHEN_NOT_GIVEN, SimplexMap
from wsi.objectives.prototypes import PrototypeKind
from wsi.objectives.rules import Predict
from wsi.objectives.terms import Form
from wsi.registry import suggest


class Hybrid(Objective):
    """head loss + weight * NCMI(embedding); decides by the head.

    NCMI shapes the embedding, the head reads it: scores stay linear in the embedding.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        head: name of an objective that wants logits, with its defaults: `ce`.
        weight: of NCMI, beside 1 for the head.
        form: see `ncmi`, as for all that follow.
        centroids: see `ncmi`.
        centroid_lr: see `ncmi`.
        prototypes: see `ncmi`.
        simplex: see `ncmi`.
        temperature: see `ncmi`.
        center: see `ncmi`.
        balanced: see `ncmi`.
        m: see `ncmi`.
        predict: which rule decides; see `wsi.objectives.rules`. `own` is the head's.

    Raises:
        ConfigError: no objective is called `head`, it does not want logits, or a setting is
            impossible.
    """

    wants = "logits"
    when_not_given = WHEN_NOT_GIVEN

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        head: str = "ce",
        weight: float = 0.1,
        form: Form | None = None,
        centroids: CentroidKind | None = None,
        centroid_lr: float | None = None,
        prototypes: PrototypeKind | None = None,
        simplex: SimplexMap | None = None,
        temperature: float | None = None,
        center: CentreKind | None = None,
        balanced: bool | None = None,
        m: int | None = None,
        predict: Predict = "own",
    ) -> None:
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)
        if not weight >= 0:
            raise ConfigError(f"hybrid: weight={weight} must not be below 0")
        self.head: Objective = _head(head)(n_classes, embedding_dim, class_counts)
        self.own_prior = self.head.own_prior
        try:
            self.ncmi = NCMI(
                n_classes,
                embedding_dim,
                class_counts,
                form=form,
                centroids=centroids,
                centroid_lr=centroid_lr,
                prototypes=prototypes,
                simplex=simplex,
                temperature=temperature,
                center=center,
                balanced=balanced,
                m=m,
            )
        except ConfigError as error:
            raise ConfigError(f"hybrid: {error}") from None
        self._weight = weight

    @classmethod
    def compares_bags(cls, params: Mapping[str, Any]) -> bool:
        """Return whether the head's loss has terms over pairs."""
        return _head(params.get("head", "ce")).needs_pairs

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return the head's loss plus the weighted NCMI."""
        return self.head(output, y) + self._weight * self.ncmi(output, y)

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return the head's scores (B, C)."""
        return self.head.own_scores(output)

    def settle_own(self, val: Sequence[tuple[BagOutput, Tensor]]) -> None:
        """Let the head fit what it leaves to validation bags."""
        self.head.settle_own(val)

    def before_fit(self, outputs: LabelledOutputs) -> None:
        """Show both parts every training bag."""
        pairs = list(outputs)
        self.head.before_fit(pairs)
        self.ncmi.before_fit(pairs)

    def after_step(self, output: BagOutput, y: Tensor) -> None:
        """Show both parts the batch."""
        self.head.after_step(output, y)
        self.ncmi.after_step(output, y)

    def figures(self, outputs: LabelledOutputs) -> dict[str, Any]:
        """Return NCMI's figures."""
        return self.ncmi.figures(outputs)


def _head(name: str) -> Any:
    found = OBJECTIVES.load(name) if name in OBJECTIVES.names() else None
    if found is None or found is Hybrid or found.wants != "logits":
        heads = [n for n in OBJECTIVES.names() if n != "hybrid"]
        heads = [n for n in heads if OBJECTIVES.load(n).wants == "logits"]
        if found is None:
            raise ConfigError(
                f"hybrid: head: unknown objective '{name}'{suggest(name, heads)} — "
                f"take one of {', '.join(heads)}"
            )
        raise ConfigError(f"hybrid: head={name} has no logits — take one of {', '.join(heads)}")
    return found
