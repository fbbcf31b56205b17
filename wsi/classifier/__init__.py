"""Training as scikit-learn knows it: bags and labels in, probabilities out."""

from __future__ import annotations

from wsi.classifier.estimator import MILClassifier

__all__ = ["MILClassifier"]
