"""Metrics of numbers against numbers."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.errors import DataError
from distune.metrics.base import CollectingMetric, Metric, PerSampleMetric, metric_registry, one_label, one_output


class _MeanError(PerSampleMetric):
    """Mean over samples of the mean error of a sample's values; outputs and labels have the same shape.

    Args:
        compare_label: False compares with the fp32 model's outputs instead of the labels.
    """

    higher_is_better = False
    outcome_low = 0.0

    def __init__(self, compare_label: bool = True) -> None:
        super().__init__()
        self.compare_label = compare_label

    def outcomes(self, outputs: Any, labels: Any) -> NDArray[np.float64]:
        found, wanted = _numbers(outputs, labels, self)
        means: NDArray[np.float64] = self._error(found - wanted).reshape(len(found), -1).mean(axis=1)
        return means

    def _error(self, difference: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.square(difference)


@metric_registry("MSE")
class MSE(_MeanError):
    """Mean squared error; lower is better."""


@metric_registry("RMSE")
class RMSE(_MeanError):
    """Root of the mean squared error; lower is better."""

    def finish(self, mean: float) -> float:
        return math.sqrt(mean)


@metric_registry("MAE")
class MAE(_MeanError):
    """Mean absolute error; lower is better."""

    def _error(self, difference: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.abs(difference)


class _Correlation(CollectingMetric):
    """Correlation of outputs and labels of the same shape; NaN where one of them is constant or not finite."""

    higher_is_better = True

    def prepare(self, outputs: Any, labels: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        found, wanted = _numbers(outputs, labels, self)
        return found.reshape(-1), wanted.reshape(-1)

    def compute(self, predictions: NDArray[Any], labels: NDArray[Any]) -> float:
        if len(predictions) < 2 or not (np.all(np.isfinite(predictions)) and np.all(np.isfinite(labels))):
            return float("nan")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a constant output gives NaN, which never meets, and is reported as such
            return self._correlate(predictions, labels)

    @abstractmethod
    def _correlate(self, predictions: NDArray[Any], labels: NDArray[Any]) -> float:
        """The coefficient of two finite series of at least two numbers."""


@metric_registry("Pearson")
class Pearson(_Correlation):
    """Pearson's correlation coefficient, by SciPy."""

    def _correlate(self, predictions: NDArray[Any], labels: NDArray[Any]) -> float:
        from scipy.stats import pearsonr

        return float(pearsonr(predictions, labels).statistic)


@metric_registry("Spearman")
class Spearman(_Correlation):
    """Spearman's rank correlation coefficient, by SciPy."""

    def _correlate(self, predictions: NDArray[Any], labels: NDArray[Any]) -> float:
        from scipy.stats import spearmanr

        return float(spearmanr(predictions, labels).statistic)


def _numbers(outputs: Any, labels: Any, metric: Metric) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    found, wanted = one_output(outputs, metric), one_label(labels, metric)
    if found.shape != wanted.shape:
        # [n, 1] against [n] is meant; anything else would broadcast into nonsense.
        if found.size != wanted.size or found.shape[:1] != wanted.shape[:1]:
            raise DataError(
                f"{type(metric).__name__}: outputs of shape {list(found.shape)} and labels of shape "
                f"{list(wanted.shape)} cannot be compared value by value"
            )
        wanted = wanted.reshape(found.shape)
    return found.astype(np.float64), wanted.astype(np.float64)
