"""PC-softmax: cross-entropy that takes the class prior out of the logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wsi.objectives.base import BagOutput, Objective
from wsi.objectives.precision import full_logits
from wsi.objectives.prior import Prior, log_prior, retargeted
from wsi.objectives.rules import Predict
from wsi.objectives.totals import mean_over_bags


class PCSoftmax(Objective):
    """Cross-entropy with the class prior in the loss, CE(n + log pi, y), and out of the decision.

    -log[e^{n_y} / sum_c pi_c e^{n_c}], read without the training prior pi.

    The loss is CE(n + log pi, y) + log pi_y, so its gradients are those of balanced softmax. Its
    minimiser has n_c = log p(x | c) up to a term of x, so softmax(n) is the posterior under equal
    shares of classes, and softmax(n + log pi') that under any other prior. The loss is minus the
    mean pointwise mutual information of bag and label; it is negative once the head knows more
    than the prior.

    Args:
        n_classes: C.
        embedding_dim: E of the aggregator.
        class_counts: training bags per class.
        prior: pi, the prior of the bags trained on.
        target_prior: pi', the prior under which the own rule's probabilities are meant.
        predict: which rule decides; see `wsi.objectives.rules`.

    Source: Qin & Kim 2019 (arXiv 1911.10688); the same gradients as Ren et al. 2020
    (arXiv 2007.10740) and Menon et al. 2021 (arXiv 2007.07314).
    """

    wants = "logits"
    log_pi: Tensor
    log_target: Tensor

    def __init__(
        self,
        n_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        prior: Prior = "training",
        target_prior: Prior = "uniform",
        predict: Predict = "own",
    ) -> None:
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)
        self.own_prior = None if isinstance(target_prior, list) else target_prior
        self.register_buffer("log_pi", log_prior(prior, class_counts))
        target = log_prior(target_prior, class_counts, "target_prior")
        self.register_buffer("log_target", target)

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        """Return the mean loss in nats; below 0 where bags tell more than the prior."""
        n = full_logits(output)
        # Against n_y from the start: two large terms need not cancel afterwards.
        margins = n - n.gather(1, y[:, None])
        losses = retargeted(margins, self.log_pi).logsumexp(-1)
        return mean_over_bags(losses, shared=self.training)

    def own_scores(self, output: BagOutput) -> Tensor:
        """Return n + log pi' (B, C); n less log C with the default, equal shares."""
        return retargeted(full_logits(output), self.log_target)
