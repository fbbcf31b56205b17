"""What every objective takes, gives and may hook into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from wsi.errors import TrainingError
from wsi.objectives.rules import (
    RULES,
    ClassMeans,
    LinearProbe,
    Predict,
    RuleName,
    balanced_nll,
    fitted_tau,
)


class BagOutput(Protocol):
    """What an objective reads of an aggregator's output."""

    @property
    def embedding(self) -> Tensor: ...
    @property
    def logits(self) -> Tensor | None: ...


LabelledOutputs = Iterable[tuple[BagOutput, Tensor]]
"""Outputs of one or more bags with their class indices (B,), each seen once."""


class Objective(nn.Module, ABC):
    """A loss with its decision rule; all it learns is in its state_dict.

    Subclasses take `(n_classes, embedding_dim, class_counts, *, <settings>)` and implement
    `forward` and `own_scores`. With `wants` set to `embedding` the aggregator is built without a
    head and the objective owns what follows.

    Attributes:
        wants: what of the aggregator the loss works on.
        needs_pairs: the loss compares bags of one step, so a step of one bag has none.
        own_prior: class prior under which the own rule's probabilities are meant: that of the
            training bags, equal shares, or None where they are no estimate of a posterior.
        when_not_given: what a setting is that was not given, where its default in code is None;
            in words, for lists of settings.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class, all above 0.
        predict: which rule decides; see `wsi.objectives.rules`.

    Raises:
        TrainingError: a class has no training bag.
    """

    wants: ClassVar[Literal["logits", "embedding"]] = "logits"
    needs_pairs: ClassVar[bool] = False
    when_not_given: ClassVar[Mapping[str, str]] = {}
    own_prior: Literal["training", "uniform"] | None = "training"  # settings may decide it
    class_counts: Tensor
    settled: Tensor

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        predict: Predict = "own",
    ) -> None:
        super().__init__()
        if n_classes < 2 or len(class_counts) != n_classes:
            raise TrainingError(
                f"{len(class_counts)} class counts were given for {n_classes} classes — "
                "give one count for each of at least 2 classes"
            )
        absent = [str(c) for c, count in enumerate(class_counts) if count < 1]
        if absent:
            raise TrainingError(
                f"class {', '.join(absent)} has no training bag — add bags or leave the class out "
                "of data.classes"
            )
        self.n_classes = n_classes
        self.embedding_dim = embedding_dim
        self.predict: Predict = predict
        self.register_buffer("class_counts", torch.tensor(list(class_counts), dtype=torch.int64))
        self.register_buffer("settled", torch.tensor(RULES.index("own")))
        self.class_mean = self._class_mean_rule()
        self.probe = LinearProbe(n_classes, embedding_dim)

    @classmethod
    def compares_bags(cls, params: Mapping[str, Any]) -> bool:
        """Return whether the loss with these settings has terms over pairs of bags of a step."""
        return cls.needs_pairs

    @abstractmethod
    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return the loss, a scalar, of B bags with classes y (B,) int64."""

    @abstractmethod
    def own_scores(self, output: BagOutput) -> Tensor:
        """Return (B, C), higher is likelier; their softmax is what the loss takes for p(c | x)."""

    def probabilities(self, output: BagOutput) -> Tensor:
        """Return (B, C) float64 by the settled rule, the own one until then; rows sum to 1."""
        return self.scores(output, self.rule).double().softmax(-1)

    @property
    def rule(self) -> RuleName:
        """Return the rule that decides."""
        return RULES[int(self.settled)]

    @property
    def predicts_prior(self) -> Literal["training", "uniform"] | None:
        """Return the class prior under which `probabilities` are meant; None: under none."""
        if self.rule == "own":
            return self.own_prior
        return "uniform" if self.rule == "probe" else None

    def scores(self, output: BagOutput, rule: RuleName) -> Tensor:
        """Return the scores (B, C) of one rule, at its temperature."""
        if rule == "own":
            return self.own_scores(output)
        if rule == "class_mean":
            return self.class_mean.scores(self.points(output))
        return self.probe.scores(output.embedding)

    def points(self, output: BagOutput) -> Tensor:
        """Return what class means are taken of (B, M): the embeddings."""
        return output.embedding.float()

    def settle_own(self, val: Sequence[tuple[BagOutput, Tensor]]) -> None:
        """Fit what the own rule leaves to validation bags: nothing, for a posterior as trained."""

    def linear_head(self) -> tuple[Tensor, Tensor] | None:
        """Return W (C, E), b (C,), in which the deciding scores are linear in the embedding.

        They may lack a term that all classes share. None where the scores are not linear, or are
        those of the aggregator's own head.
        """
        if self.rule == "class_mean":
            return self.class_mean.linear()
        return self.probe.linear() if self.rule == "probe" else None

    def _class_mean_rule(self) -> ClassMeans:
        return ClassMeans(self.n_classes, self.embedding_dim)

    def before_fit(self, outputs: LabelledOutputs) -> None:
        """See every training bag once before the first step, without gradient."""

    def after_step(self, output: BagOutput, y: Tensor) -> None:
        """See the batch again after the optimiser's step."""

    def figures(self, outputs: LabelledOutputs) -> dict[str, Any]:
        """Return figures of these bags to log each epoch, without gradient: none by default."""
        return {}

    @torch.no_grad()
    def after_fit(
        self, train_outputs: LabelledOutputs, val_outputs: LabelledOutputs | None
    ) -> None:
        """Settle the decision rule from training and validation bags, without gradient.

        Class means and probe come from training bags, their temperatures from validation bags,
        and with predict=auto the choice of rule too; without validation the own rule stands.

        Raises:
            TrainingError: a class does not occur among the training bags, or one of their
                embeddings is not finite, and the rule is taken from them.
        """
        candidates: tuple[RuleName, ...] = RULES if self.predict == "auto" else (self.predict,)
        if set(candidates) != {"own"}:
            self._settle_rules(candidates, train_outputs)
        val = None if val_outputs is None else list(val_outputs)
        if val:
            self._settle_temperatures(candidates, val)
        if self.predict != "auto":
            self.settled.fill_(RULES.index(self.predict))
        elif val:
            y = torch.cat([labels for _, labels in val])
            nll = [balanced_nll(self._scores_of(val, rule), y) for rule in RULES]
            self.settled.fill_(min(range(len(RULES)), key=nll.__getitem__))

    def _settle_rules(self, rules: Sequence[RuleName], outputs: LabelledOutputs) -> None:
        seen = [(self.points(o).double(), o.embedding.double(), y) for o, y in outputs]
        points, embeddings, y = (torch.cat(parts) for parts in zip(*seen))
        bad = ~(points.isfinite().all(-1) & embeddings.isfinite().all(-1))
        if bad.any():
            raise TrainingError(
                f"the embeddings of {int(bad.sum())} training bags are not finite, so no decision "
                "rule can be taken from them — lower fit.lr, or set objective.predict=own"
            )
        if "class_mean" in rules:
            self.class_mean.settle(points, y)
        if "probe" in rules:
            self.probe.settle(embeddings, y)

    def _settle_temperatures(
        self, rules: Sequence[RuleName], val: Sequence[tuple[BagOutput, Tensor]]
    ) -> None:
        """Fit the temperatures of the rules to validation bags."""
        if "own" in rules:
            self.settle_own(val)
        y = torch.cat([labels for _, labels in val])
        settled: dict[RuleName, ClassMeans | LinearProbe] = {
            "class_mean": self.class_mean,
            "probe": self.probe,
        }
        for name, rule in settled.items():
            if name in rules:
                rule.tau.fill_(1.0)
                rule.tau.fill_(fitted_tau(self._scores_of(val, name), y, rule.scale))

    def _scores_of(self, outputs: Sequence[tuple[BagOutput, Tensor]], rule: RuleName) -> Tensor:
        return torch.cat([self.scores(output, rule).double() for output, _ in outputs])

    def balanced_weights(self) -> Tensor:
        """Return 1 / (C pi_y) per class (C,), pi the training frequencies; 1 when balanced."""
        counts = self.class_counts.double()
        return (counts.sum() / (self.n_classes * counts)).float()


def class_logits(output: BagOutput) -> Tensor:
    """Return the logits (B, C), or raise TrainingError when the aggregator has no head."""
    if output.logits is None:
        raise TrainingError(
            "this objective needs class logits, the aggregator has no head — "
            "build the aggregator with n_classes"
        )
    return output.logits
