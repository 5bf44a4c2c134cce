"""Load a factor set through Qlib, with the set's own warm-up rule."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pandas as pd
from qlib.data import D
from qlib.data.dataset.loader import QlibDataLoader

from qlib_llm_alpha.data.provider import PanelDatasetProvider, configured_panel_provider
from qlib_llm_alpha.library.factor_set import FactorSet


class FactorSetLoader(QlibDataLoader):
    """Features are the factors of a set, in its order and under its names.

    With ``warmup: strict`` every factor is computed over the whole history up to the end of the query and then cut,
    so that a value never depends on where a query starts (Qlib's ``EMA`` and ``Delta`` do), and the first look-back
    bars of an instrument are NaN (Qlib fills them from partial windows). With ``warmup: qlib`` the numbers are
    Qlib's own.

    Values come from the dataset provider that ``qlib.init`` was given. A set with operators that only our engine
    computes, the cross-sectional ones, is served by a :class:`~qlib_llm_alpha.data.provider.PanelDatasetProvider` of
    the loader's own where another provider is configured.

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
        self.needs_engine = any(factor.expression.needs_engine for factor in factor_set.factors)
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
        engine = configured_panel_provider()
        if engine is None and self.needs_engine and gp_name == "feature":
            engine = PanelDatasetProvider()
        load = super().load_group_df if engine is None else functools.partial(self._from_engine, engine)
        if gp_name != "feature" or self.warmup != "strict":
            stock: pd.DataFrame = load(instruments, exprs, names, start_time, end_time, gp_name)
            return stock
        whole = engine is not None and not engine.qlib_window
        frame: pd.DataFrame = load(instruments, exprs, names, start_time if whole else None, end_time, gp_name)
        if start_time is not None:
            frame = frame.loc[pd.Timestamp(start_time) :]
        return self._without_warmup(frame)

    def _from_engine(
        self,
        engine: PanelDatasetProvider,
        instruments: Any,
        exprs: list[str],
        names: list[str],
        start_time: Any,
        end_time: Any,
        gp_name: str | None,
    ) -> pd.DataFrame:
        universe = (
            D.instruments(instruments, filter_pipe=self.filter_pipe) if isinstance(instruments, str) else instruments
        )
        processors = self.inst_processors
        chosen = processors if isinstance(processors, list) else processors.get(gp_name, [])
        frame = engine.dataset_by_day(universe, exprs, start_time, end_time, self.freq, chosen)
        frame.columns = pd.Index(names)
        return frame

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
