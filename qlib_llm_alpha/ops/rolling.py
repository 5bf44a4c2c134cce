"""Rolling operators that stock Qlib lacks or gets wrong, for ``qlib_init: {custom_ops: [...]}``."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from qlib.data.base import Expression
from qlib.data.ops import Rolling

from qlib_llm_alpha.errors import ConfigError


class DecayLinear(Rolling):
    """Linearly weighted rolling mean: the newest bar weighs N, the one before N-1, the oldest 1.

    Parameters
    ----------
    feature : Expression
        What is averaged.
    N : int
        Bars in the window, at least 1.

    Raises
    ------
    ConfigError
        ``N`` is not a positive integer.

    Notes
    -----
    A value at t uses the bars t-N+1 to t. The weights are divided by their sum over the bars that have a value, so a
    missing bar neither counts as zero nor shifts the weight of the others; the early bars of an instrument give
    partial windows, as everywhere in Qlib. A window without any value gives NaN.

    Qlib's own ``WMA`` divides the weighted mean by N once more, which makes a five-day mean of prices near 19 come out
    near 4.
    """

    def __init__(self, feature: Expression, N: int) -> None:
        if type(N) is not int or N < 1:
            raise ConfigError(f"the window of DecayLinear is {N!r}; expected a positive whole number of bars.")
        super().__init__(feature, N, "decay_linear")

    def _load_internal(self, instrument: str, start_index: int, end_index: int, *args: object) -> pd.Series:
        series = self.feature.load(instrument, start_index, end_index, *args)
        return pd.Series(decay_linear(series.to_numpy(dtype=np.float64), self.N), index=series.index)


OPERATORS = (DecayLinear,)
"""Every operator of ours, for ``qlib.init(custom_ops=list(OPERATORS))``."""


def decay_linear(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the linearly weighted rolling mean of one instrument's values.

    Parameters
    ----------
    values : array of shape (days,)
        NaN where there is no value.
    window : int
        Bars in the window, at least 1.

    Returns
    -------
    array of shape (days,)
        NaN where the window holds no value.
    """
    if not len(values):  # numpy refuses to convolve nothing, and Qlib asks for instruments without data
        return values
    present = ~np.isnan(values)
    # Weight by age, newest first, is what a convolution with the falling weights gives.
    weights = np.arange(window, 0, -1, dtype=np.float64)
    total = np.convolve(np.where(present, values, 0.0), weights)[: len(values)]
    weight = np.convolve(present.astype(np.float64), weights)[: len(values)]
    with np.errstate(invalid="ignore"):
        return np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), np.nan)
