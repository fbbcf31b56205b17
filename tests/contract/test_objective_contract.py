"""What every registered objective promises."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from wsi.errors import TrainingError
from wsi.objectives import OBJECTIVES
from wsi.objectives.rules import ClassMeans

C, E = 3, 8
COUNTS = (40, 10, 25)


@pytest.mark.parametrize("name", OBJECTIVES.names())
class TestObjective:
    def objective(self, name):
        torch.manual_seed(0)
        return OBJECTIVES.load(name)(C, E, COUNTS)

    def outputs(self, n=6, seed=0):
        g = torch.Generator().manual_seed(seed)
        return SimpleNamespace(
            embedding=torch.randn(n, E, generator=g), logits=torch.randn(n, C, generator=g)
        )

    def settled(self, name):
        objective, y = self.objective(name), torch.arange(30) % C
        objective.before_fit(iter([(self.outputs(30), y)]))
        objective.after_step(self.outputs(30), y)
        val = iter([(self.outputs(12, seed=2), torch.arange(12) % C)])
        objective.after_fit(iter([(self.outputs(30), y)]), val)
        return objective

    def test_a_single_bag_gives_a_finite_loss_and_gradient_or_says_that_it_needs_more(self, name):
        objective, output = self.objective(name), self.outputs(1)
        for tensor in (output.embedding, output.logits):
            tensor.requires_grad_()
        if objective.needs_pairs:
            with pytest.raises(TrainingError, match=r"set fit\.bags_per_step=8 or more"):
                objective(output, torch.tensor([1]))
            objective(self.outputs(2), torch.tensor([0, 1]))
        loss = objective(output, torch.tensor([1]))  # for pairs: the remainder of an epoch
        loss.backward()
        wanted = getattr(output, "embedding" if objective.wants == "embedding" else "logits")
        assert loss.shape == ()
        assert loss.isfinite()
        assert wanted.grad.isfinite().all()
        assert wanted.grad.abs().sum() > 0 or objective.needs_pairs

    def test_a_single_bag_can_be_evaluated(self, name):
        objective = self.objective(name).eval()
        with torch.no_grad():
            assert objective(self.outputs(1), torch.tensor([1])).isfinite()

    def test_autocast_changes_neither_loss_nor_scores(self, name):
        objective, output, y = self.settled(name), self.outputs(8), torch.arange(8) % C
        loss, scores = objective(output, y), objective.own_scores(output)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(objective(output, y), loss, rtol=1e-6, atol=0)
            torch.testing.assert_close(objective.own_scores(output), scores, rtol=1e-6, atol=1e-6)

    def test_half_precision_outputs_are_taken_as_the_numbers_they_are(self, name):
        objective, y = self.settled(name), torch.arange(8) % C
        half = SimpleNamespace(**{k: v.bfloat16() for k, v in vars(self.outputs(8)).items()})
        same = SimpleNamespace(**{k: v.float() for k, v in vars(half).items()})
        torch.testing.assert_close(objective(half, y), objective(same, y), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("predict", ["own", "class_mean", "probe", "auto"])
    def test_every_rule_decides_and_survives_the_state_dict(self, name, predict):
        torch.manual_seed(0)
        objective = OBJECTIVES.load(name)(C, E, COUNTS, predict=predict)
        y = torch.arange(30) % C
        val = [(self.outputs(12, seed=2), torch.arange(12) % C)]
        objective.after_fit(iter([(self.outputs(30), y)]), iter(val))
        assert predict in (objective.rule, "auto")
        torch.manual_seed(99)
        other = OBJECTIVES.load(name)(C, E, COUNTS, predict=predict)
        other.load_state_dict(objective.state_dict())
        assert other.rule == objective.rule
        output = self.outputs(9, seed=5)
        assert torch.equal(other.probabilities(output), objective.probabilities(output))

    def test_class_means_are_the_nearest_centroids_of_training_bags(self, name):
        torch.manual_seed(0)
        objective = OBJECTIVES.load(name)(C, E, COUNTS, predict="class_mean")
        train, y, test = self.outputs(30), torch.arange(30) % C, self.outputs(50, seed=3)
        objective.after_fit(iter([(train, y)]), None)
        if type(objective.class_mean) is not ClassMeans:
            pytest.skip("has a geometry of its own, tested beside it")
        fitted = NearestCentroid().fit(train.embedding.numpy(), y.numpy())
        expected = fitted.predict(test.embedding.numpy())
        p = objective.probabilities(test).detach().numpy()
        np.testing.assert_array_equal(p.argmax(1), expected)

    def test_classes_absent_from_a_batch_are_no_error(self, name):
        objective, output, y = self.objective(name), self.outputs(4), torch.full((4,), 2)
        assert objective(output, y).isfinite()
        objective.after_step(output, y)
        assert objective(output, y).isfinite()

    def test_probabilities_sum_to_one(self, name):
        for objective in (self.objective(name), self.settled(name)):
            p = objective.probabilities(self.outputs(20)).detach().numpy()
            assert p.shape == (20, C)
            assert p.dtype == np.float64
            assert (p >= 0).all()
            np.testing.assert_allclose(p.sum(1), 1, atol=1e-12)

    def test_the_state_dict_carries_the_decision_rule(self, name):
        objective, output = self.settled(name), self.outputs(9, seed=5)
        torch.manual_seed(99)
        other = OBJECTIVES.load(name)(C, E, COUNTS)
        other.load_state_dict(objective.state_dict())
        assert torch.equal(other.probabilities(output), objective.probabilities(output))

    def test_a_class_without_training_bags_is_named(self, name):
        with pytest.raises(TrainingError, match="class 1 has no training bag"):
            OBJECTIVES.load(name)(C, E, (4, 0, 3))

    def test_counts_must_match_the_classes(self, name):
        with pytest.raises(TrainingError, match="2 class counts were given for 3 classes"):
            OBJECTIVES.load(name)(C, E, (4, 3))

    def test_a_few_steps_separate_what_is_separable(self, name):
        rng = np.random.default_rng(0)
        centres = 3 * np.eye(C, E)
        y = np.concatenate([np.arange(30) % C, np.arange(60) % C])
        x = torch.from_numpy((centres[y] + 0.3 * rng.normal(size=(90, E))).astype(np.float32))
        labels, head = torch.from_numpy(y), torch.nn.Linear(E, C)
        objective = self.objective(name)
        parameters = [*head.parameters(), *objective.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=0.02)

        def output(rows):
            return SimpleNamespace(embedding=x[rows], logits=head(x[rows]))

        train, test = slice(0, 30), slice(30, 90)
        objective.before_fit(iter([(output(train), labels[train])]))
        for _ in range(60):
            optimizer.zero_grad()
            batch = output(train)
            objective(batch, labels[train]).backward()
            optimizer.step()
            objective.after_step(batch, labels[train])
        objective.after_fit(iter([(output(train), labels[train])]), None)
        p = objective.probabilities(output(test)).detach().numpy()
        assert (p.argmax(1) == y[test]).mean() > 0.97
