"""CLAM: attention pooling that also learns from its most and least attended tiles.

Source: Lu et al. 2021, *Data-efficient and weakly supervised computational pathology on
whole-slide images*, arXiv 2004.09666.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from wsi.aggregators.base import Aggregator, Output, Packed, TileTerms, needed_classes
from wsi.aggregators.layers import (
    AttentionScores,
    BranchHead,
    segment_branches,
    segment_softmax,
)
from wsi.errors import ConfigError

InstanceLoss = Literal["ce", "svm"]


class InstanceClusters(nn.Module):
    """A classifier per class that tells its tiles from others, by pseudo-labels of attention.

    In the class of the bag, the k tiles of most attention are positive, the k of least negative.
    With subtyping, where classes exclude each other, the k of most attention are negative for
    every other class. A bag of fewer than 2k tiles gives half its tiles to either side; one of a
    single tile has a positive only. The loss is the mean over these tiles, then over the classes
    that have some, then over bags.

    Args:
        width: E of a tile.
        n_classes: C.
        k: tiles of either kind.
        subtyping: see above.
        loss: cross-entropy, or the smooth SVM with margin and temperature 1 (Berrada et al. 2018,
            arXiv 1802.07595, top-1), which for two classes is cross-entropy with the margin added
            to the wrong one.
    """

    def __init__(
        self, width: int, n_classes: int, *, k: int, subtyping: bool, loss: InstanceLoss
    ) -> None:
        super().__init__()
        self.k = k
        self.subtyping = subtyping
        self.margin = 1.0 if loss == "svm" else 0.0
        self.classifiers = nn.ModuleList(nn.Linear(width, 2) for _ in range(n_classes))

    def forward(self, h: Tensor, attention: Tensor, sizes: tuple[int, ...], y: Tensor) -> Tensor:
        """Return the loss of tiles h (sum N, E), attention (sum N, C or 1), labels y (B,)."""
        # Tiles are chosen for every class, and those of classes without a say get weight 0:
        # asking which one y is would stall a device, and these are few.
        C = len(self.classifiers)
        chosen = _chosen(attention.detach(), sizes, self.k)
        own = y[chosen.bag, None] == torch.arange(C, device=y.device)  # (M, C)
        weight = torch.where(own, chosen.inside[:, None], 0.0)
        if self.subtyping:
            weight = torch.where(own, weight, chosen.outside[:, None]) / C
        target = (own & chosen.top[:, None]).long()
        losses = self._losses(h[chosen.rows.expand(-1, C)], target)
        return (losses * weight).sum() / len(sizes)

    def _losses(self, tiles: Tensor, target: Tensor) -> Tensor:
        """Return (M, C): the loss of class c on its tiles (M, C, E), for target (M, C)."""
        layers = [(c.weight, c.bias) for c in self.classifiers if isinstance(c, nn.Linear)]
        weight, bias = (torch.stack(parts) for parts in zip(*layers, strict=True))
        scores = torch.einsum("mce,cje->mcj", tiles, weight) + bias
        # Not one_hot, which looks at the numbers and would stall a device.
        scores = scores + self.margin * torch.stack([target, 1 - target], -1)
        return cross_entropy(scores.flatten(0, 1), target.flatten(), reduction="none").view_as(
            target
        )


@dataclass(frozen=True, eq=False)
class _Chosen:
    """M tiles, for one class each or for all.

    Attributes:
        rows: (M, C) or (M, 1), places in the batch.
        bag: (M,), the bag of each.
        top: (M,), among those of most attention rather than of least.
        inside: (M,), one over the tiles of its bag; `outside`, one over those of most attention,
            0 for others.
    """

    rows: Tensor
    bag: Tensor
    top: Tensor
    inside: Tensor
    outside: Tensor


def _chosen(attention: Tensor, sizes: tuple[int, ...], k: int) -> _Chosen:
    """Return the min(k, N / 2) tiles of most and of least attention of every bag and branch."""
    rows, facts, start = [], [], 0
    for bag, part in enumerate(attention.split(sizes)):
        n = len(part)
        top, low = min(k, max(n // 2, 1)), min(k, n // 2)
        rows.append(part.topk(top, 0).indices + start)
        facts += [(bag, 1, 1 / (top + low), 1 / top)] * top
        if low:
            rows.append(part.topk(low, 0, largest=False).indices + start)
            facts += [(bag, 0, 1 / (top + low), 0.0)] * low
        start += n
    bags, tops, inside, outside = torch.tensor(facts).T.to(attention.device)
    return _Chosen(torch.cat(rows), bags.long(), tops.bool(), inside, outside)


class _CLAM(Aggregator):
    """Tile features, attention of one branch or of one per class, and the loss on tiles.

    Args:
        dim: features per tile, D.
        n_classes: C.
        hidden: E, features per tile after the first layer.
        attention_dim: width of the attention network.
        gated: gated attention (Ilse et al. 2018, eq. 9) rather than plain (eq. 8).
        dropout: share of the bag embedding dropped in training.
        k_sample: tiles of most and of least attention that are learned from.
        bag_weight: w; loss = w bag + (1 - w) tiles, up to a factor: the term of the bag has
            weight 1, that of tiles (1 - w) / w. At 1 tiles are not learned from.
        subtyping: classes exclude each other, so a bag's tiles are negative for the others.
        instance_loss: ce, or svm, the smooth SVM of the paper.
        instance_dropout: share of tiles left out in training, at least one kept per bag.
        attention_entropy: weight of the attention's negative entropy in the loss (AEM).

    Raises:
        ConfigError: a setting is impossible, or there are no classes, as the objective works on
            the embedding.
    """

    needs_head = True
    name: ClassVar[str]
    multi: ClassVar[bool]

    def __init__(
        self,
        dim: int,
        n_classes: int | None,
        *,
        hidden: int = 512,
        attention_dim: int = 256,
        gated: bool = True,
        dropout: float = 0.25,
        k_sample: int = 8,
        bag_weight: float = 0.7,
        subtyping: bool = False,
        instance_loss: InstanceLoss = "ce",
        instance_dropout: float = 0.0,
        attention_entropy: float = 0.0,
    ) -> None:
        classes = needed_classes(self.name, n_classes, "abmil")
        branches = classes if self.multi else 1
        super().__init__(
            dim,
            None if self.multi else classes,
            embedding_dim=branches * hidden,
            instance_dropout=instance_dropout,
            attention_entropy=attention_entropy,
        )
        if k_sample < 1:
            raise ConfigError(f"{self.name}: k_sample={k_sample} is no number of tiles — give 1+")
        if not 0 < bag_weight <= 1:
            raise ConfigError(
                f"{self.name}: bag_weight={bag_weight} — give more than 0 and at most 1"
            )
        if self.multi:
            self.head = BranchHead(hidden, classes)
        self.bag_weight = bag_weight
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.attention = AttentionScores(hidden, attention_dim, branches, gated=gated)
        self.dropout = nn.Dropout(dropout)
        self.instances = InstanceClusters(
            hidden, classes, k=k_sample, subtyping=subtyping, loss=instance_loss
        )

    def aggregate(self, batch: Packed) -> Output:
        """Return embedding (B, H E), logits (B, C), attention (sum N, H); H branches.

        In training with labels also the loss on tiles.
        """
        h, attention = self._tiles(batch)
        z = self.dropout(segment_branches(h, attention, batch.sizes).flatten(1))
        return Output(
            z,
            self.classify(z),
            attention=attention,
            aux_loss=self._instance_loss(h, attention, batch),
        )

    def tile_terms(self, batch: Packed) -> TileTerms:
        """Return h, once per branch (sum N, H E), and attention (sum N, H)."""
        h, attention = self._tiles(batch)
        return TileTerms(h.repeat(1, attention.shape[1]), attention)

    def _tiles(self, batch: Packed) -> tuple[Tensor, Tensor]:
        h = self.embed(batch.x)
        return h, segment_softmax(self.attention(h), batch.sizes)

    def _instance_loss(self, h: Tensor, attention: Tensor, batch: Packed) -> Tensor | None:
        if not self.training or batch.y is None or self.bag_weight == 1:
            return None
        share = (1 - self.bag_weight) / self.bag_weight
        return share * self.instances(h, attention, batch.sizes, batch.y)


class CLAMSB(_CLAM):
    """ABMIL that also learns from its most and least attended tiles (single branch).

    The loss on tiles needs labels, so objectives on the embedding are refused: they have no
    classes; `abmil` is the same without it.
    """

    name = "clam_sb"
    multi = False


class CLAMMB(_CLAM):
    """CLAM with an attention branch, an embedding and a score per class (multi-branch).

    The most and least attended tiles of a class are those of its own branch.
    """

    name = "clam_mb"
    multi = True
