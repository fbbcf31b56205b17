"""Evidence of trained models: sums to what they predict, is refused or labelled where it cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor

from wsi.aggregators import AGGREGATORS
from wsi.aggregators.base import Aggregator, Output
from wsi.data import pack
from wsi.errors import ExplainError
from wsi.explain import Question, class_margins, mean_evidence, model_evidence, tile_maps
from wsi.objectives.base import BagOutput, Objective
from wsi.specs import Config
from wsi.training.model import Model, build

D, CLASSES, COUNTS = 5, ("x", "y", "z"), (6, 2, 4)
LOG_PRIOR = np.log(np.array(COUNTS) / 12)


def model_of(aggregator="abmil", objective="ce", seed=0, **params):
    config = Config.model_validate(
        {"aggregator": {"name": aggregator, "hidden": 8, **params}, "objective": objective}
    )
    return build(config, D, CLASSES, COUNTS, seed=seed).eval()


def batch_of(n=11, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)
    return pack([(3 * x, None, "s", np.zeros((n, 2), np.int32))])


class Curved(Objective):
    """Scores that are not linear in the embedding: squared distances to fixed points, cubed."""

    wants = "embedding"
    own_prior = "uniform"

    def __init__(self, n_classes, embedding_dim, class_counts, *, predict="own"):
        super().__init__(n_classes, embedding_dim, class_counts, predict=predict)
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("at", torch.randn(n_classes, embedding_dim, generator=generator))

    def forward(self, output: BagOutput, y: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(self.own_scores(output), y)

    def own_scores(self, output: BagOutput) -> Tensor:
        return -((output.embedding[:, None] - self.at).square().sum(-1) ** 1.5) / 10


def curved_of(**params):
    plain = model_of(**params)
    aggregator = AGGREGATORS.load(plain.card.aggregator)(D, None, **plain.card.aggregator_params)
    return Model(plain.card, aggregator, Curved(3, aggregator.embedding_dim, COUNTS)).eval()


linear_ = pytest.mark.parametrize(
    ("aggregator", "params"),
    [("abmil", {}), ("abmil", {"heads": 4}), ("mean", {}), ("abmil_mb", {}), ("clam_mb", {})],
)
told = pytest.mark.parametrize("aggregator", ["additive", "topk", "dsmil"])


@linear_
@pytest.mark.parametrize("n", [1, 2, 11, 3000])
def test_tiles_sum_to_the_logits_as_predicted(aggregator, params, n):
    model, batch = model_of(aggregator, **params), batch_of(n)
    found = model_evidence(model, batch)
    with torch.no_grad():
        logits = model(batch).logits[0].double().numpy()
    np.testing.assert_allclose(found.evidence.sum(axis=0), logits, atol=1e-5)
    assert found.exact
    assert found.gap < 1e-5


def test_dropout_is_off():
    model, batch = model_of(dropout=0.9), batch_of()
    model.train()
    np.testing.assert_array_equal(
        model_evidence(model, batch).evidence, model_evidence(model, batch).evidence
    )


@linear_
def test_contrasts_of_cross_entropy_sum_to_the_difference_of_pmi(aggregator, params):
    found = model_evidence(model_of(aggregator, **params), batch_of())
    pmi = np.log(found.probabilities) - LOG_PRIOR
    sums = found.pmi_evidence.sum(axis=0)
    np.testing.assert_allclose(sums - sums[0], pmi - pmi[0], atol=1e-5)


def test_leaving_a_tile_out_is_what_the_model_says_of_the_others():
    model, batch = model_of(heads=2), batch_of()
    found = model_evidence(model, batch)
    with torch.no_grad():
        whole = model(batch).logits[0].numpy()
        for i in range(11):
            rest = torch.cat([batch.x[:i], batch.x[i + 1 :]])
            logits = model(pack([(rest.numpy(), None, "s", None)])).logits[0].numpy()
            np.testing.assert_allclose(found.drop[i], whole - logits, atol=1e-5)


def test_the_pmi_of_a_tile_is_what_the_model_says_of_it_alone():
    model, batch = model_of(heads=2), batch_of()
    found = model_evidence(model, batch)
    assert found.pmi is not None
    with torch.no_grad():
        for i in range(11):
            logits = model(pack([(batch.x[i : i + 1].numpy(), None, "s", None)])).logits[0]
            np.testing.assert_allclose(
                found.pmi[i], log_softmax(logits.double().numpy()) - LOG_PRIOR, atol=1e-5
            )
    assert (found.pmi <= -LOG_PRIOR).all()


def test_of_one_tile_nothing_is_left_out():
    found = model_evidence(model_of(), batch_of(1))
    assert np.isnan(found.drop).all()
    maps = tile_maps("s", found, np.zeros((1, 2), int), (1, 1), CLASSES, Question())
    with pytest.raises(ExplainError, match="one tile"):
        maps.values("leave-one-out")


def test_max_pooling_is_refused():
    with pytest.raises(ExplainError, match="'max' does not sum over tiles"):
        model_evidence(model_of("max"), batch_of())


@told
@pytest.mark.parametrize("objective", ["ce", "pc_softmax"])
def test_evidence_that_a_model_tells_itself_sums_to_what_it_predicts(aggregator, objective):
    model, batch = model_of(aggregator, objective), batch_of()
    found = model_evidence(model, batch)
    with torch.no_grad():
        logits = model(batch).logits[0].double().numpy()
    np.testing.assert_allclose(found.evidence.sum(axis=0), logits, atol=1e-5)
    assert found.exact
    assert found.attention.sum() == pytest.approx(1)
    log_prior = LOG_PRIOR if objective == "ce" else np.log(np.ones(3) / 3)
    pmi, sums = np.log(found.probabilities) - log_prior, found.pmi_evidence.sum(axis=0)
    np.testing.assert_allclose(sums - sums[0], pmi - pmi[0], atol=1e-5)


@told
def test_the_pmi_of_a_tile_is_what_such_a_model_says_of_it_alone(aggregator):
    model, batch = model_of(aggregator), batch_of()
    found = model_evidence(model, batch)
    assert found.pmi is not None
    for i in range(11):
        with torch.no_grad():
            logits = model(pack([(batch.x[i : i + 1].numpy(), None, "s", None)])).logits[0]
        expected = log_softmax(logits.double().numpy()) - LOG_PRIOR
        np.testing.assert_allclose(found.pmi[i], expected, atol=1e-5)


@told
def test_such_a_model_is_not_run_without_each_tile(aggregator):
    found = model_evidence(model_of(aggregator), batch_of())
    maps = tile_maps("s", found, np.zeros((11, 2), int), (1, 1), CLASSES, Question())
    with pytest.raises(ExplainError, match="run anew without each tile"):
        maps.values("leave-one-out")


def test_evidence_for_logits_is_refused_where_class_means_decide():
    model = model_of("additive")
    model.objective.predict = "class_mean"
    z, y = torch.randn(30, 256, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    with torch.no_grad():
        model.objective.after_fit([(Output(z), y)], None)
    with pytest.raises(ExplainError, match="not these that decide"):
        model_evidence(model, batch_of())


def test_evidence_for_logits_is_refused_where_they_are_bent():
    model = model_of("additive", "square")
    scores = model.objective.own_scores
    model.objective.own_scores = lambda output: scores(output) ** 3
    with pytest.raises(ExplainError, match="not these that decide"):
        model_evidence(model, batch_of())


class Spread(Aggregator):
    """Tiles sum to the embedding, but a layer stands between it and the head."""

    def __init__(self, inner):
        super().__init__(D, 3, inner.embedding_dim)
        self.inner = inner

    def aggregate(self, batch):
        return replace(self.inner(batch), logits=self.classify(self.inner(batch).embedding))

    def classify(self, embedding):
        return self.head(embedding.tanh())

    def tile_terms(self, batch):
        return self.inner.tile_terms(batch)


def test_a_head_that_is_not_linear_is_never_called_exact():
    plain = model_of()
    found = model_evidence(
        Model(plain.card, Spread(plain.aggregator), plain.objective).eval(), batch_of()
    )
    assert not found.exact


def test_scores_that_are_not_linear_get_integrated_gradients():
    model, batch, start = curved_of(heads=2), batch_of(), np.linspace(0.2, 0.9, 8)
    found = model_evidence(model, batch, baseline=start)
    assert not found.exact
    terms = model.tile_terms(batch)
    assert terms is not None
    h, a = terms.h.detach().double().numpy(), terms.attention.detach().double().numpy()
    z = model(batch).embedding[0].detach().double().numpy()
    at = model.objective.at.double().numpy()

    def log_p(point):
        return log_softmax(-(((point - at) ** 2).sum(axis=1) ** 1.5) / 10)

    steps, width = 400, 1e-4
    for i in (0, 3, 7):  # along the share of tile i, by central differences
        share = np.repeat(a[i], 4) * (h[i] - start)
        total = np.zeros(3)
        for k in range(steps):
            point = start + (z - start) * (k + 0.5) / steps
            slope = log_p(point + width * share) - log_p(point - width * share)
            total += slope / (2 * width) / steps
        np.testing.assert_allclose(found.evidence[i], total, atol=1e-4)


def test_integrated_gradients_sum_to_the_change_from_an_average_bag():
    model, start = curved_of(), np.linspace(0.2, 0.9, 8)
    found = model_evidence(model, batch_of(), baseline=start)
    average = Output(torch.as_tensor(start[None], dtype=torch.float32))
    before = model.objective.scores(average, "own").double().softmax(-1)[0].numpy()
    change = np.log(found.probabilities) - np.log(before)
    np.testing.assert_allclose(found.evidence.sum(axis=0), change, atol=1e-3)
    assert found.gap < 1e-3


def test_leave_one_out_and_pmi_are_exact_for_scores_that_are_not_linear():
    model, batch = curved_of(heads=2), batch_of()
    found = model_evidence(model, batch)
    assert found.pmi is not None

    def log_p(x):
        output = model(pack([(x.numpy(), None, "s", None)]))
        return model.probabilities(output).log()[0].detach().numpy()

    for i in range(11):
        rest = torch.cat([batch.x[:i], batch.x[i + 1 :]])
        np.testing.assert_allclose(found.drop[i], log_p(batch.x) - log_p(rest), atol=1e-4)
        np.testing.assert_allclose(found.pmi[i], log_p(batch.x[i : i + 1]) + np.log(3), atol=1e-4)


@pytest.mark.parametrize("rule", ["class_mean", "probe"])
def test_class_means_and_probe_make_maps_of_any_objective_exact(rule):
    model, batch = curved_of(), batch_of()
    model.objective.predict = rule
    rng = np.random.default_rng(0)
    z, y = torch.from_numpy(rng.normal(size=(30, 8))).float(), torch.arange(30) % 3
    with torch.no_grad():
        model.objective.after_fit([(Output(z), y)], None)
    found = model_evidence(model, batch)
    assert found.exact
    # Probabilities by class means are under no prior, of the probe under equal ones.
    assert (found.pmi is None) == (rule == "class_mean")
    assert found.gap < 1e-5
    sums = found.pmi_evidence.sum(axis=0)
    log_p = np.log(found.probabilities)
    np.testing.assert_allclose(sums - sums[0], log_p - log_p[0], atol=1e-4)


def test_without_a_known_prior_tiles_have_no_pmi():
    model = curved_of()
    type(model.objective).own_prior = None
    try:
        found = model_evidence(model, batch_of())
    finally:
        type(model.objective).own_prior = "uniform"
    assert found.pmi is None
    maps = tile_maps("s", found, np.zeros((11, 2), int), (1, 1), CLASSES, Question())
    with pytest.raises(ExplainError, match="no PMI"):
        maps.values("pmi")


def test_the_mean_of_models_sums_to_their_mean_logits():
    models, batch = [model_of(seed=s) for s in range(3)], batch_of()
    found = mean_evidence([model_evidence(m, batch) for m in models])
    with torch.no_grad():
        logits = np.mean([m(batch).logits[0].numpy() for m in models], axis=0)
    np.testing.assert_allclose(found.evidence.sum(axis=0), logits, atol=1e-5)
    assert found.exact
    assert found.attention.sum() == pytest.approx(1)


def test_a_mean_with_an_approximation_in_it_is_one():
    parts = [model_evidence(model_of(), batch_of()), model_evidence(curved_of(), batch_of())]
    assert not mean_evidence(parts).exact


def test_the_margin_of_a_class_is_over_the_best_of_the_others():
    found = model_evidence(model_of(), batch_of())
    m = found.pmi_evidence
    for i, row in enumerate(class_margins(found)):
        for c in range(3):
            rivals = [m[i, k] for k in range(3) if k != c]
            assert row[c] == pytest.approx(m[i, c] - max(rivals))


# -- questions -------------------------------------------------------------------------------


def maps_of(question):
    found = model_evidence(model_of(), batch_of())
    return found, tile_maps("s", found, np.zeros((11, 2), int), (1, 1), CLASSES, question)


def test_the_predicted_class_is_explained_where_none_is_named():
    found, maps = maps_of(Question())
    assert maps.target == CLASSES[found.probabilities.argmax()]
    assert maps.rival == "the others"


def test_a_named_class_is_held_against_a_named_class():
    found, maps = maps_of(Question("z", "x"))
    np.testing.assert_array_equal(maps.evidence, found.evidence[:, 2])
    np.testing.assert_allclose(maps.contrast, found.pmi_evidence @ [-1, 0, 1])
    np.testing.assert_allclose(maps.leave_one_out, found.drop @ [-1, 0, 1])


def test_a_predicted_class_is_never_held_against_itself():
    found, _ = maps_of(Question())
    first, second = np.argsort(-found.probabilities)[:2]
    _, maps = maps_of(Question(None, CLASSES[first]))
    assert (maps.target, maps.rival) == (CLASSES[first], CLASSES[second])


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (Question("Z"), "--target Z is no class"),
        (Question("z", "runnerup"), "did you mean 'runner-up'"),
        (Question("z", "z"), "the target itself"),
    ],
)
def test_what_cannot_be_asked_is_an_error(question, words):
    with pytest.raises(ValueError, match=words):
        question.check(CLASSES)
