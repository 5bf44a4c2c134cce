"""A handler whose features are mined: on its fit window alone, as Qlib's processors are fitted, and then frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlib.config import C
from qlib.data.dataset.handler import DataHandlerLP

from qlib_llm_alpha.data.handler import INFER_PROCESSORS, LABEL, LEARN_PROCESSORS, FactorSetHandler
from qlib_llm_alpha.data.mined import MiningRequest, mined_set
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.library.factor_set import FactorSet, Mode
from qlib_llm_alpha.mining.llm_session import BUDGET_TOKENS, EMBEDDED, ModelPlan

SESSIONS = ".data/sessions"


class LLMAlphaHandler(FactorSetHandler):
    """Features are the factors of a base set, then those that a language model proposed and admission let in.

    Mining reads bars from ``fit_start_time`` to ``fit_end_time`` and no later one. What it finds is a factor set with
    ``as_of`` the last of these days, the same for every row of the handler.

    Where the answers come from, in this order: ``llm_mode`` or the environment's ``LLM_MODE``; without either they are
    replayed from ``recording``, at no cost and without a key. A recording is bound to the data it was made on: on
    other data there is nothing to replay, and the frozen set that was recorded with it stands in; the log says so.

    Parameters
    ----------
    base : str or None
        A built-in set or the path of one whose factors come first and are not mined again; None: none.
    documents : str
        Folder of papers and notes; ``embedded``: the notes that are shipped with the package.
    recording : str
        Recorded answers: a file, or ``embedded``, which was written by us for the embedded market.
    llm_mode : {"live", "record", "replay"}, optional
        ``live`` and ``record`` ask the endpoint of ``OPENAI_BASE_URL`` with ``OPENAI_API_KEY`` and ``OPENAI_MODEL``.
    llm_model : str, optional
        Asked instead of ``OPENAI_MODEL``.
    trials, shortlist, mining_seed : int
        As for ``qlib-llm-alpha mine``.
    budget_usd, budget_tokens : float, int
        Hard stops of a live session.
    sessions : str
        Folder in which sessions are kept, one for each plan: a session that was stopped goes on, a whole one is read.
    mode : {"scale_free", "literal"}
        Of the base set.
    instruments, start_time, end_time, fit_start_time, fit_end_time, label, ...
        As for :class:`FactorSetHandler`; ``fit_start_time`` and ``fit_end_time`` must be given.

    Raises
    ------
    ConfigError
        No fit window, or a label with several columns.
    ReplayError
        The recording lacks an answer on the data that it is bound to: other trials or documents. Another window or
        label is other data, on which the frozen set stands in.
    LibraryError
        The frozen set of the same market knows bars after the fit window.
    LLMError
        A live model cannot be asked; what was answered is kept, and the same call goes on from there.
    """

    def __init__(
        self,
        base: str | None = "starter",
        documents: str | None = EMBEDDED,
        recording: str = EMBEDDED,
        llm_mode: str | None = None,
        llm_model: str | None = None,
        trials: int = 100,
        shortlist: int = 20,
        mining_seed: int = 0,
        budget_usd: float | None = None,
        budget_tokens: int | None = BUDGET_TOKENS,
        sessions: str = SESSIONS,
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
        factors = self.configured_set(
            base=base,
            documents=documents,
            recording=recording,
            llm_mode=llm_mode,
            llm_model=llm_model,
            trials=trials,
            shortlist=shortlist,
            mining_seed=mining_seed,
            budget_usd=budget_usd,
            budget_tokens=budget_tokens,
            sessions=sessions,
            mode=mode,
            instruments=instruments,
            fit_start_time=fit_start_time,
            fit_end_time=fit_end_time,
            label=label,
        )
        super().__init__(
            factor_set=factors,
            mode=mode,
            instruments=instruments,
            start_time=start_time,
            end_time=end_time,
            freq=freq,
            infer_processors=infer_processors,
            learn_processors=learn_processors,
            fit_start_time=fit_start_time,
            fit_end_time=fit_end_time,
            process_type=process_type,
            filter_pipe=filter_pipe,
            inst_processors=inst_processors,
            label=label,
            **kwargs,
        )

    @classmethod
    def configured_set(cls, *, sessions: str = SESSIONS, **kwargs: Any) -> FactorSet:
        """Mine, or read what was mined with the same keywords before; those of the parent are not read."""
        root = Path(C.dpm.get_data_uri("day" if "day" in C.dpm.provider_uri else C.DEFAULT_FREQ))
        return mined_set(mining_request(root, **kwargs), Path(sessions))


def mining_request(
    provider: Path,
    *,
    base: str | None = "starter",
    documents: str | None = EMBEDDED,
    recording: str = EMBEDDED,
    llm_mode: str | None = None,
    llm_model: str | None = None,
    trials: int = 100,
    shortlist: int = 20,
    mining_seed: int = 0,
    budget_usd: float | None = None,
    budget_tokens: int | None = BUDGET_TOKENS,
    mode: Mode = "scale_free",
    instruments: Any = "csi300",
    fit_start_time: Any = None,
    fit_end_time: Any = None,
    label: Any = None,
    **kwargs: Any,
) -> MiningRequest:
    """Return what the keywords of :class:`LLMAlphaHandler` ask to mine; the others are not read."""
    if fit_start_time is None or fit_end_time is None:
        raise ConfigError(
            f"LLMAlphaHandler has fit_start_time {fit_start_time!r} and fit_end_time {fit_end_time!r}; expected both: "
            "they are the days that factors are mined on; write those of the train segment"
        )
    return MiningRequest(
        provider=provider,
        universe=instruments,
        start=str(fit_start_time)[:10],
        end=str(fit_end_time)[:10],
        label=_label_text(label),
        proposer="llm",
        trials=trials,
        shortlist=shortlist,
        seed=mining_seed,
        library=base,
        library_mode=mode,
        model=ModelPlan(
            mode=llm_mode,
            model=llm_model,
            documents=documents,
            recording=recording,
            budget_usd=budget_usd,
            budget_tokens=budget_tokens,
        ),
    )


def _label_text(label: Any) -> str:
    """Return the one expression of a handler's label."""
    if label is None:
        return LABEL
    found = label
    while isinstance(found, (list, tuple)) and found:
        found = found[0]
    if not isinstance(found, str):
        raise ConfigError(f"label {label!r}: expected an expression to mine for, such as {LABEL!r}")
    return found
