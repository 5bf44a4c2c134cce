"""Load a factor set through Qlib, with the set's own warm-up rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from qlib.data import D
from qlib.data.dataset.loader import QlibDataLoader

from qlib_llm_alpha.library.factor_set import FactorSet


class FactorSetLoader(QlibDataLoader):
    """Features are the factors of a set, in its order and under its names.

    With ``warmup: strict`` every factor is computed over the whole history up to the end of the query and then cut,
    so that a value never depends on where a query starts (Qlib's ``EMA`` and ``Delta`` do), and the first look-back
    bars of an instrument are NaN (Qlib fills them from partial windows). With ``warmup: qlib`` the numbers are
    Qlib's own.

    Parameters
    ----------
    factor_set : FactorSet
        What to compute.
    label : tuple of (list of str, list of str)
        Label expressions and their names.
    filter_pipe, freq, inst_processors
        As in Qlib's ``QlibDataLoader``.
    """

    def __init__(
        self,
        factor_set: FactorSet,
        label: tuple[list[str], list[str]],
        filter_pipe: list[Any] | None = None,
        freq: str = "day",
        inst_processors: dict[str, Any] | list[Any] | None = None,
    ) -> None:
        self.warmup = factor_set.warmup
        self.lookbacks = {factor.name: factor.expression.lookback for factor in factor_set.factors}
        features = [factor.expression.qlib for factor in factor_set.factors], list(factor_set.names)
        super().__init__(
            config={"feature": features, "label": label},
            filter_pipe=filter_pipe,
            freq=freq,
            inst_processors=inst_processors,
        )

    def load_group_df(
        self,
        instruments: Any,
        exprs: list[str],
        names: list[str],
        start_time: Any = None,
        end_time: Any = None,
        gp_name: str | None = None,
    ) -> pd.DataFrame:
        """Load one group of columns; see Qlib's loader."""
        if gp_name != "feature" or self.warmup != "strict":
            stock: pd.DataFrame = super().load_group_df(instruments, exprs, names, start_time, end_time, gp_name)
            return stock
        frame = super().load_group_df(instruments, exprs, names, None, end_time, gp_name)
        if start_time is not None:
            frame = frame.loc[pd.Timestamp(start_time) :]
        return self._without_warmup(frame)

    def _without_warmup(self, frame: pd.DataFrame) -> pd.DataFrame:
        bars = self._bars_since_first(frame)
        complete = bars[:, None] >= np.array([self.lookbacks[name] for name in frame.columns])
        kept: pd.DataFrame = frame.where(complete)
        return kept

    def _bars_since_first(self, frame: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.int64]]:
        days = frame.index.get_level_values("datetime")
        codes = frame.index.get_level_values("instrument")
        calendar = pd.DatetimeIndex(D.calendar(freq=self.freq))
        close = D.features(list(codes.unique()), ["$close"], None, days.max(), freq=self.freq)["$close"].dropna()
        first = close.reset_index("datetime").groupby(level="instrument")["datetime"].min()
        started = codes.map(pd.Series(calendar.get_indexer(first), index=first.index))
        # An instrument without any bar has no value to mask.
        return np.asarray(calendar.get_indexer(days) - pd.Series(started).fillna(0).to_numpy(), dtype=np.int64)
