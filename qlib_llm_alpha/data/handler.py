"""A handler whose features are a factor set: it stands wherever ``Alpha158`` stands in a YAML."""

from __future__ import annotations

from typing import Any

import pandas as pd
from qlib.contrib.data.handler import check_transform_proc
from qlib.data import D
from qlib.data.dataset.handler import DataHandlerLP

from qlib_llm_alpha.data.loader import FactorSetLoader
from qlib_llm_alpha.data.preflight import check_dates, check_fields, check_label, check_universe
from qlib_llm_alpha.errors import LibraryError
from qlib_llm_alpha.library.factor_set import FactorSet, Mode, load_factor_set

LABEL = "Ref($close, -2)/Ref($close, -1) - 1"
INFER_PROCESSORS = ({"class": "DailyInf", "module_path": "qlib_llm_alpha.data.processor", "kwargs": {}},)
_RECENT_ROWS = 5_000
LEARN_PROCESSORS = (
    {"class": "DropUnlabelled", "module_path": "qlib_llm_alpha.data.processor", "kwargs": {}},
    {"class": "DailyZScore", "module_path": "qlib_llm_alpha.data.processor", "kwargs": {}},
)


class FactorSetHandler(DataHandlerLP):
    """Features are the factors of a set; the label is that of Qlib's ``Alpha158``.

    A row dated t uses bars up to the close of t. The default label dated t is the return from the close of t+1 to the
    close of t+2, known at t+2. Columns are ``("feature", factor name)`` in the set's order and ``("label", "LABEL0")``.

    Parameters
    ----------
    factor_set : str or FactorSet
        Name or id of a built-in set, or path of a YAML file.
    mode : {"scale_free", "literal"}
        Which form of a seed factor is computed: per unit of price and volume, or on raw prices ``$close/$factor``.
    instruments : str, list or dict
        As in Qlib; a market name masks rows by membership.
    start_time, end_time : date
        Range of rows.
    infer_processors, learn_processors : list
        As in Qlib. Default: infinite values by day; then drop rows without a label and standardise the label by day.
    label : (list of str, list of str), optional
        Expressions and names.
    fit_start_time, fit_end_time, process_type, filter_pipe, inst_processors, freq
        As in Qlib's ``Alpha158``.

    Raises
    ------
    ProviderError, ConfigError, LibraryError
        Before anything is loaded: missing provider, universe or field, date outside the calendar, empty set, a label
        that looks nowhere or too far. After loading: a factor without a single value.
    """

    def __init__(
        self,
        factor_set: str | FactorSet = "seed",
        mode: Mode = "scale_free",
        instruments: Any = "csi300",
        start_time: Any = None,
        end_time: Any = None,
        freq: str = "day",
        infer_processors: Any = INFER_PROCESSORS,
        learn_processors: Any = LEARN_PROCESSORS,
        fit_start_time: Any = None,
        fit_end_time: Any = None,
        process_type: str = DataHandlerLP.PTYPE_A,
        filter_pipe: list[Any] | None = None,
        inst_processors: Any = None,
        label: Any = None,
        **kwargs: Any,
    ) -> None:
        self.factor_set: FactorSet = FactorSetHandler.configured_set(factor_set=factor_set, mode=mode)
        label_config = ([LABEL], ["LABEL0"]) if label is None else _label_config(label)
        codes = check_universe(instruments, freq=freq)
        check_dates(start_time, end_time, what="handler start_time, end_time", freq=freq)
        days = len(D.calendar(start_time, end_time, freq=freq))
        check_dates(fit_start_time, fit_end_time, what="handler fit_start_time, fit_end_time", freq=freq)
        self.labels = tuple(check_label(text, days=days) for text in label_config[0])
        check_fields(self.factor_set.fields, codes, freq=freq)
        super().__init__(
            instruments=instruments,
            start_time=start_time,
            end_time=end_time,
            data_loader=FactorSetLoader(
                self.factor_set,
                # Only text that our parser printed reaches Qlib, which evaluates it.
                ([label.qlib for label in self.labels], label_config[1]),
                filter_pipe=filter_pipe,
                freq=freq,
                inst_processors=inst_processors,
            ),
            infer_processors=check_transform_proc(list(infer_processors), fit_start_time, fit_end_time),
            learn_processors=check_transform_proc(list(learn_processors), fit_start_time, fit_end_time),
            process_type=process_type,
            **kwargs,
        )

    @classmethod
    def configured_set(
        cls, *, factor_set: str | FactorSet = "seed", mode: Mode = "scale_free", **kwargs: Any
    ) -> FactorSet:
        """Return the factor set that a handler with these keywords has; the others are not read."""
        return factor_set if isinstance(factor_set, FactorSet) else load_factor_set(factor_set, mode=mode)

    @property
    def label_horizon(self) -> int:
        """Bars after its date that the label reads: a label dated t is known at the close of t + horizon."""
        return max(label.lookahead for label in self.labels)

    def setup_data(self, init_type: str = DataHandlerLP.IT_FIT_SEQ, **kwargs: Any) -> None:
        """Load and process; refuse a factor that has no value at all."""
        super().setup_data(init_type=init_type, **kwargs)
        frame: pd.DataFrame = self._learn if self.drop_raw else self._data
        features: Any = frame["feature"]
        # Most columns show a value near the end; only the others are looked at whole.
        recent = features.columns[features.iloc[-_RECENT_ROWS:].isna().to_numpy().all(axis=0)]
        empty = [str(name) for name in recent if features[name].isna().all()]
        if empty:
            raise LibraryError(
                f"factors {empty} have no value between {self.start_time} and {self.end_time}: their look-back is "
                "longer than the history or their input is empty; leave them out of the set or load more history"
            )


def _label_config(label: Any) -> tuple[list[str], list[str]]:
    if isinstance(label, str):
        return [label], ["LABEL0"]
    if isinstance(label, (list, tuple)) and len(label) == 2 and all(isinstance(part, (list, tuple)) for part in label):
        return list(label[0]), list(label[1])
    if isinstance(label, (list, tuple)) and all(isinstance(part, str) for part in label):
        return list(label), [f"LABEL{position}" for position in range(len(label))]
    raise LibraryError(f"label {label!r}: expected an expression, a list of them, or [[expressions], [names]]")
