"""Processors that look at one day at a time."""

from __future__ import annotations

import numpy as np
import pandas as pd
from qlib.data.dataset.processor import Processor


class DailyInf(Processor):
    """Put the day's largest finite value in place of ``inf`` and the smallest in place of ``-inf``.

    The order of the day is kept. Qlib's ``ProcessInf`` puts the day's mean there, which turns the strongest value into
    a middling one, and takes minutes, because it loops over days and columns. NaN stays NaN; a day without a finite
    value becomes NaN.

    Parameters
    ----------
    fields_group : str
        The column group that is treated.
    """

    def __init__(self, fields_group: str = "feature") -> None:
        self.fields_group = fields_group

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return the frame, indexed (datetime, instrument), with its infinite values replaced."""
        columns = [column for column in df.columns if column[0] == self.fields_group]
        treated: pd.DataFrame = df.copy(deep=False)
        for column in columns:
            values = df[column].to_numpy()
            infinite = np.isinf(values)
            if infinite.any():
                finite = pd.Series(np.where(infinite, np.nan, values), index=df.index.get_level_values("datetime"))
                by_day = finite.groupby(level=0)
                top, bottom = by_day.transform("max").to_numpy(), by_day.transform("min").to_numpy()
                treated[column] = np.where(values == np.inf, top, np.where(values == -np.inf, bottom, values))
        return treated

    def is_for_infer(self) -> bool:
        """Say that prediction treats infinite values as training does."""
        return True

    def readonly(self) -> bool:
        """Say that the given frame stays as it is, so that the handler need not copy it first."""
        return True


class DailyZScore(Processor):
    """Centre each day at 0 and scale it to sample deviation 1, as Qlib's ``CSZScoreNorm``, without a loop over days.

    Sums are float64, so values may differ from Qlib's in the last bit of float32. NaN stays NaN; a day of equal values,
    or with one value, becomes NaN. Reads the day alone.

    Parameters
    ----------
    fields_group : str
        The column group that is treated.
    """

    def __init__(self, fields_group: str = "label") -> None:
        self.fields_group = fields_group

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return the frame, indexed (datetime, instrument), with its group standardised."""
        standardised: pd.DataFrame = df.copy(deep=False)
        day, _ = pd.factorize(df.index.get_level_values("datetime"))
        for column in [column for column in df.columns if column[0] == self.fields_group]:
            stored = df[column].to_numpy()
            values = stored.astype(np.float64)
            there = ~np.isnan(values)
            count = np.bincount(day, weights=there)
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = np.bincount(day, weights=np.where(there, values, 0.0)) / count
                centred = values - mean[day]
                square = np.bincount(day, weights=np.where(there, centred * centred, 0.0))
                standardised[column] = (centred / np.sqrt(square / (count - 1))[day]).astype(stored.dtype)
        return standardised

    def is_for_infer(self) -> bool:
        """Say that it stands among the learn processors: prediction has no label."""
        return False

    def readonly(self) -> bool:
        """Say that the given frame stays as it is, so that the handler need not copy it first."""
        return True


class DropUnlabelled(Processor):
    """Drop the rows in which a label is missing, as Qlib's ``DropnaLabel``, several times sooner on wide frames.

    Parameters
    ----------
    fields_group : str
        The column group of the labels.
    """

    def __init__(self, fields_group: str = "label") -> None:
        self.fields_group = fields_group

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return the rows that have every label, in their order."""
        groups = df.columns.get_level_values(0)
        kept = df.loc[:, groups == self.fields_group].notna().to_numpy().all(axis=1)
        index = df.index[kept]
        parts = []
        for group in dict.fromkeys(groups):
            part = df.loc[:, groups == group]
            # Columns lie one after the other in memory: each is cut by itself, where pandas goes row by row.
            values = np.compress(kept, part.to_numpy().T, axis=1)
            parts.append(pd.DataFrame(values.T, index=index, columns=part.columns, copy=False))
        labelled: pd.DataFrame = pd.concat(parts, axis=1) if len(parts) > 1 else parts[0]
        return labelled

    def is_for_infer(self) -> bool:
        """Say that it stands among the learn processors: prediction has no label."""
        return False

    def readonly(self) -> bool:
        """Say that the given frame stays as it is, so that the handler need not copy it first."""
        return True
