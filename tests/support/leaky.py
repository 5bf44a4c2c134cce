"""Handlers and models that leak on purpose, each in one way: what the guards must catch."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from qlib.data import D
from qlib.data.dataset import DatasetH
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import DataLoader
from qlib.data.dataset.processor import Processor, ZScoreNorm
from qlib.model.base import Model

LABEL = "Ref($close, -2)/Ref($close, -1) - 1"
HONEST = ["$close/Ref($close, 5)", "Std($close/Ref($close, 1), 10)", "$volume/Mean($volume, 20)"]


class Columns(DataHandlerLP):
    """A handler of any expressions, as a user writes one."""

    def __init__(
        self,
        features: list[str] | None = None,
        instruments: Any = "csi300",
        start_time: Any = None,
        end_time: Any = None,
        fit_start_time: Any = None,
        fit_end_time: Any = None,
        infer_processors: Any = (),
        learn_processors: Any = ({"class": "DropnaLabel"},),
        data_loader: Any = None,
        **kwargs: Any,
    ) -> None:
        features = HONEST if features is None else features
        config = {
            "feature": (features, [f"x{number}" for number in range(len(features))]),
            "label": ([LABEL], ["LABEL0"]),
        }
        super().__init__(
            instruments=instruments,
            start_time=start_time,
            end_time=end_time,
            data_loader=data_loader or {"class": "QlibDataLoader", "kwargs": {"config": config}},
            infer_processors=list(infer_processors),
            learn_processors=list(learn_processors),
            **kwargs,
        )


class PandasLoader(DataLoader):
    """Load closes and the label, and make one column of them with pandas."""

    def __init__(self, make: str) -> None:
        self.make = make

    def load(self, instruments: Any, start_time: Any = None, end_time: Any = None) -> pd.DataFrame:
        universe = D.instruments(instruments) if isinstance(instruments, str) else instruments
        frame = D.features(universe, ["$close", LABEL], start_time, end_time)
        frame = frame.swaplevel().sort_index()
        by_name = frame["$close"].groupby(level="instrument", group_keys=False)
        column = {
            "centred": lambda: by_name.apply(lambda line: line / line.rolling(5, center=True).mean()),
            "shifted": lambda: by_name.apply(lambda line: line.shift(-1) / line),
            "backfilled": lambda: by_name.apply(lambda line: line.bfill() / line.shift(3)),
            "expanding": lambda: by_name.apply(lambda line: line / line.expanding().mean()),
            "dated a day early": lambda: by_name.apply(lambda line: (line / line.shift(1)).shift(-1)),
            "label": lambda: frame[LABEL],
        }[self.make]()
        values = pd.DataFrame({("feature", "x0"): column, ("label", "LABEL0"): frame[LABEL]})
        return values.sort_index()


class MadeWithPandas(Columns):
    """One column of `PandasLoader`."""

    def __init__(self, make: str, **kwargs: Any) -> None:
        super().__init__(data_loader=PandasLoader(make), **kwargs)


class HindsightUniverse(Columns):
    """Only the names that are still listed on the calendar's last day."""

    def __init__(self, **kwargs: Any) -> None:
        last = D.calendar()[-1]
        survivors = D.list_instruments(D.instruments("csi300"), last, last, as_list=True)
        super().__init__(instruments=survivors, **kwargs)


class WholeZScore(Processor):
    """Standardise by mean and deviation of every day there is, and say nothing of it."""

    def fit(self, df: pd.DataFrame) -> None:
        values = df["feature"].to_numpy()
        self.mean, self.deviation = np.nanmean(values, axis=0), np.nanstd(values, axis=0)

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        columns = [column for column in df.columns if column[0] == "feature"]
        df[columns] = (df[columns] - self.mean) / self.deviation
        return df


class LateZScore(Columns):
    """Qlib's ZScoreNorm, fitted up to the end of test."""

    def __init__(self, fit_until: str, **kwargs: Any) -> None:
        norm = ZScoreNorm(fit_start_time=kwargs.get("start_time"), fit_end_time=fit_until, fields_group="feature")
        super().__init__(infer_processors=[norm], **kwargs)


class CachedWithoutDates(Columns):
    """Keep the loaded frame in a file that is named by nothing that its contents depend on."""

    def setup_data(self, *args: Any, **kwargs: Any) -> None:
        cache = Path("frame.pkl")
        if cache.is_file():
            self._data, self._infer, self._learn = pickle.loads(cache.read_bytes())  # noqa: S301
            return
        super().setup_data(*args, **kwargs)
        cache.write_bytes(pickle.dumps((self._data, self._infer, self._learn)))


class MeanOfSegments(Model):
    """Predict the first feature plus the mean label of some segments."""

    def __init__(self, segments: tuple[str, ...] = ("train",)) -> None:
        self.segments = segments
        self.mean = 0.0

    def fit(self, dataset: DatasetH) -> MeanOfSegments:
        parts = [dataset.prepare(name, col_set="label", data_key=DataHandlerLP.DK_L) for name in self.segments]
        self.mean = float(pd.concat(parts).to_numpy().mean())
        return self

    def predict(self, dataset: DatasetH, segment: str = "test") -> pd.Series:
        return dataset.prepare(segment, col_set="feature").iloc[:, 0] + self.mean


class Unseeded(MeanOfSegments):
    """A model whose fit gives something else each time."""

    def fit(self, dataset: DatasetH) -> Unseeded:
        self.mean = float(np.random.default_rng().random())
        return self


class Purging(MeanOfSegments):
    """A model that says it leaves out rows whose label is not known."""

    purges_labels = True


def close_over_mean(provider: str) -> pd.DataFrame:
    """Compute an honest signal of a user's own."""
    close = D.features(D.instruments("csi300"), ["$close/Mean($close, 10)"])
    return close.rename(columns={close.columns[0]: "reversion"})


def tomorrow(provider: str) -> pd.Series:
    """Compute a signal that is tomorrow's return."""
    return D.features(D.instruments("csi300"), ["Ref($close, -1)/$close - 1"]).iloc[:, 0]
