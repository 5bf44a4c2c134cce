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
        """Treat a frame indexed (datetime, instrument), in place."""
        columns = [column for column in df.columns if column[0] == self.fields_group]
        values = df[columns].to_numpy(copy=True)
        infinite = np.isinf(values)
        affected = infinite.any(axis=0)
        if affected.any():
            days = df.index.get_level_values("datetime")
            for position in np.flatnonzero(affected):
                column = values[:, position]
                finite = pd.Series(np.where(infinite[:, position], np.nan, column), index=days)
                by_day = finite.groupby(level=0)
                top, bottom = by_day.transform("max").to_numpy(), by_day.transform("min").to_numpy()
                values[:, position] = np.where(column == np.inf, top, np.where(column == -np.inf, bottom, column))
            df[columns] = values
        return df

    def is_for_infer(self) -> bool:
        """Say that prediction treats infinite values as training does."""
        return True

    def readonly(self) -> bool:
        """Say that the frame is changed in place."""
        return False
