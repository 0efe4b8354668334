"""Reading a range test: fastai's smoothing and its four rules."""

from __future__ import annotations

from typing import Any

import numpy as np


def smoothed(losses: np.ndarray, decay: float = 0.98) -> np.ndarray:
    """Return the exponentially weighted mean of the losses so far."""
    mean, weight, found = 0.0, 0.0, []
    for loss in losses:
        mean, weight = decay * mean + (1 - decay) * loss, decay * weight + 1 - decay
        found.append(mean / weight)
    return np.array(found)


def stop(losses: np.ndarray) -> int:
    """Return the first step whose loss is above 4 times the best so far, or else the last."""
    exploded = ~(losses <= 4 * np.fmin.accumulate(losses))
    return int(np.argmax(exploded)) if exploded.any() else len(losses) - 1


def valley(rates: np.ndarray, losses: np.ndarray) -> Any:
    """Return the rate halfway down the longest decreasing subsequence, counted from its end."""
    lengths = np.ones(len(losses), int)
    for i in range(1, len(losses)):
        lengths[i] += np.max(lengths[:i], where=losses[:i] > losses[i], initial=0)
    end, length = int(np.argmax(lengths)), int(np.max(lengths))
    # fastai's documentation says two thirds, but its code adds a third and half a third.
    return rates[max(0, end - length + length // 3 + length // 6)]


def slide(rates: np.ndarray, losses: np.ndarray, width: int = 15, least: float = 0.005) -> Any:
    """Return the rate where an interval, sliding down from the last step, starts to bend."""
    slopes = np.gradient(losses)
    width = min(width, len(losses) - 1)
    differs = np.abs(slopes[width:] - slopes[:-width]) > least
    bends = int(np.flatnonzero(~differs).max(initial=-1)) + 1
    return rates[min(bends, len(differs) - 1)]


def minimum(rates: np.ndarray, losses: np.ndarray) -> Any:
    """Return a tenth of the rate with the least loss."""
    return rates[np.argmin(losses)] / 10


def steep(rates: np.ndarray, losses: np.ndarray) -> Any:
    """Return the rate where the loss falls most steeply with the logarithm of the rate."""
    return rates[np.argmin(np.diff(losses) / np.diff(np.log(rates)))]
