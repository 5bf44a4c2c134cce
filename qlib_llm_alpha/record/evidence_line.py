"""The line that every run ends with: how much was tried, what was looked at, and what the figures come from."""

from __future__ import annotations

import hashlib
import inspect
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from qlib.backtest import get_exchange
from qlib.backtest.exchange import Exchange
from qlib.utils import get_callable_kwargs

import qlib_llm_alpha
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.evaluation.openings import Opening
from qlib_llm_alpha.record.model_memory import memory_of, memory_words
from qlib_llm_alpha.record.openings import factor_set_as_of, seen_before
from qlib_llm_alpha.record.task_check import backtests_of

COST_WORDS = ("cost", "commission", "stamp_duty", "transfer_fee", "slippage")
SEED_WORDS = ("seed", "random_state")
SHOWN = 10  # letters of a hash that people compare
UNKNOWN_COSTS = "not known without a task"


@dataclass(frozen=True)
class EvidenceLine:
    """What a run's figures rest on.

    Parameters
    ----------
    trials : int
        Distinct candidates that anyone has scored on this data, by the ledger.
    trials_in_ledger : int
        The same on whatever data.
    effective_trials : float
        Independent trials whose best would look like the best of these.
    tune_reads, tune_reads_in_ledger : int
        Looks at the outcomes of valid in this run, and on this data by whomever.
    openings : int
        Distinct configurations that have opened sealed dates which overlap those of this run, this one included; 0
        for a run that opened nothing.
    repeated : bool
        The same configuration had opened them before.
    spent : bool
        They were opened by force, now or before, or seen otherwise: they prove nothing any more.
    seen : tuple of str
        How their days were looked at otherwise than by an opening.
    forced : str
        The reason given in this run.
    study, cells : str, int
        The declared grid of experiments that the run belongs to.
    confirm_readings : int
        Distinct configurations that have read the confirm segment; 0 for a run that did not.
    costs : tuple of str
        Of each kind of backtest in the task; empty without one, and not known of a run that has no task.
    seeds : mapping of str to int
        Every seed that the task states, and that of a model which has one by default.
    configuration, factor_set, data, code : str
        Hashes and names.
    ledger_rows, ledger_hash : int, str
        The ledger's head, an anchor to check it with later.
    memory : tuple of str
        For each language model among the origins of the factors, whether it can know the days of test. Empty when no
        model proposed any.
    """

    trials: int
    trials_in_ledger: int
    effective_trials: float
    tune_reads: int
    tune_reads_in_ledger: int
    openings: int
    repeated: bool
    spent: bool
    seen: tuple[str, ...]
    forced: str
    study: str
    cells: int
    confirm_readings: int
    costs: tuple[str, ...]
    seeds: Mapping[str, Any]
    configuration: str
    factor_set: str
    data: str
    code: str
    ledger_rows: int
    ledger_hash: str = field(default="")
    memory: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The line itself."""
        confirm = f"; confirm read by {self.confirm_readings}" if self.confirm_readings else ""
        remark = f" ({self._opening_remark})" if self._opening_remark else ""
        memory = "".join(f"; model memory: {words}" for words in self.memory)
        seeds = ", ".join(f"{name} {value}" for name, value in self.seeds.items()) or "none stated"
        return (
            f"trials {self.trials} (effective {self.effective_trials:.1f}; {self.trials_in_ledger} in the ledger); "
            f"reads of tune {self.tune_reads} ({self.tune_reads_in_ledger} in the ledger); "
            f"openings of sealed {self.openings}{remark}{confirm}{memory}; "
            f"costs {' | '.join(self.costs) or 'none'}; seeds {seeds}; configuration {_short(self.configuration)}, "
            f"factor set {self.factor_set}, data {self.data[:SHOWN]}, code {self.code}, "
            f"ledger {self.ledger_rows}:{self.ledger_hash[:SHOWN]}"
        )

    @property
    def _opening_remark(self) -> str:
        remarks = ["the same configuration again"] if self.repeated else []
        if self.study:
            remarks.append(f"study {self.study!r} of {self.cells} cells")
        if self.spent:
            remarks.append("SPENT")
        remarks += self.seen
        if self.forced:
            remarks.append(f"forced now: {self.forced}")
        return ", ".join(remarks)

    def counts(self) -> list[tuple[str, str, str]]:
        """Return the line as rows for a table: what, how many, remark."""
        seeds = ", ".join(f"{name} {value}" for name, value in self.seeds.items())
        rows = [
            ("trials", str(self.trials), f"distinct candidates scored on this data; {self.trials_in_ledger} on any"),
            ("effective trials", f"{self.effective_trials:.1f}", "independent ones whose best would look the same"),
            ("reads of tune", str(self.tune_reads), f"looks at valid in this run; {self.tune_reads_in_ledger} in all"),
            ("openings of sealed", str(self.openings), self._opening_remark or "the first"),
        ]
        if self.confirm_readings:
            rows.append(("readings of confirm", str(self.confirm_readings), "configurations that have read it"))
        rows += [("model memory", "", words) for words in self.memory]
        return [
            *rows,
            ("costs", "", " and ".join(self.costs) or "no backtest in the task"),
            ("seeds", "", seeds or "none stated"),
            ("configuration", _short(self.configuration), f"factor set {self.factor_set}"),
            ("data", self.data[:SHOWN], "hash of the provider's content"),
            ("code", "", self.code),
            ("ledger", str(self.ledger_rows), f"rows, the last with the hash {self.ledger_hash[:SHOWN]}"),
        ]

    def metrics(self) -> dict[str, float]:
        """Return the counts as metrics."""
        return {
            "evidence/trials": float(self.trials),
            "evidence/effective trials": float(self.effective_trials),
            "evidence/reads of tune": float(self.tune_reads),
            "evidence/openings of sealed": float(self.openings),
            "evidence/sealed is spent": float(self.spent),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        lists = {"costs": list(self.costs), "memory": list(self.memory)}
        return {**asdict(self), **lists, "seeds": dict(self.seeds), "sentence": self.sentence}


def evidence_line(
    ledger: TrialLedger,
    task: Mapping[str, Any],
    *,
    configuration: str,
    factor_set: str,
    data: str,
    run: str,
    opening: Opening | None,
    confirm_readings: int = 0,
) -> EvidenceLine:
    """Build the line of a run from the ledger and the task.

    Parameters
    ----------
    ledger : TrialLedger
    task : mapping
        As Qlib reads it; empty for a run that was put together by hand.
    configuration, factor_set, data : str
        Hashes and names of the run's configuration, factor set and data.
    run : str
        Id of the run.
    opening : Opening or None
        As it was logged; None for a run that opened nothing.
    confirm_readings : int
        Of a run that read confirm.

    Raises
    ------
    ChainError
        The ledger is damaged.
    """
    head = ledger.head()
    as_of = factor_set_as_of(task["dataset"]) if task else None
    seen = () if opening is None else seen_before(ledger, opening.key, as_of)
    return EvidenceLine(
        trials=ledger.count(data=data),
        trials_in_ledger=ledger.count(),
        effective_trials=ledger.effective_trials(data=data),
        tune_reads=ledger.tune_reads(data=data, run=run),
        tune_reads_in_ledger=ledger.tune_reads(data=data),
        openings=0 if opening is None else opening.openings,
        repeated=opening is not None and opening.repeated,
        spent=opening is not None and (opening.spent or bool(seen)),
        seen=seen,
        forced="" if opening is None else opening.forced,
        study="" if opening is None else opening.study,
        cells=1 if opening is None else opening.cells,
        confirm_readings=confirm_readings,
        costs=costs_of(task) if task else (UNKNOWN_COSTS,),
        seeds=seeds_of(task),
        configuration=configuration,
        factor_set=factor_set,
        data=data,
        code=code_revision(),
        ledger_rows=head.count,
        ledger_hash=head.hash,
        memory=memory_words(memory_of(task["dataset"], today=date.today())) if task else (),
    )


def costs_of(task: Mapping[str, Any]) -> tuple[str, ...]:
    """Say what each exchange of a task charges, its defaults included; equal ones once."""
    found = [_costs(config["backtest"].get("exchange_kwargs") or {}) for _, config in backtests_of(task)]
    return tuple(dict.fromkeys(found))


def seeds_of(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return every seed that a task states, by its place, and the seed that its model has by default."""
    seeds: dict[str, Any] = {}
    for part in ("model", "dataset", "record"):
        seeds.update(_seeds(task.get(part), part))
    model = task.get("model")
    if isinstance(model, Mapping):
        kind, kwargs = get_callable_kwargs(dict(model))
        for name, parameter in inspect.signature(kind).parameters.items():
            if name in SEED_WORDS and name not in (kwargs or {}) and parameter.default is not inspect.Parameter.empty:
                seeds[f"model.{name}"] = parameter.default
    return seeds


def code_revision() -> str:
    """Return version, revision where the package lies in its repository, and a hash of the package's own source."""
    package = Path(qlib_llm_alpha.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{qlib_llm_alpha.__version__} (source {digest.hexdigest()[:SHOWN]}{_revision(package.parent)})"


def _short(configuration: str) -> str:
    """Shorten the hash, which is the last word: what stands before it says what was hashed."""
    *words, last = configuration.split(" ")
    return " ".join([*words, last[:SHOWN]])


def _revision(root: Path) -> str:
    if not (root / ".git").exists():
        return ""
    try:
        asked = subprocess.run(  # noqa: S603 - a command of ours
            ["git", "-C", str(root), "rev-parse", "--short", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""  # no git on this machine
    return f", revision {asked.stdout.strip()}" if asked.returncode == 0 else ""


def _costs(exchange: Mapping[str, Any]) -> str:
    named = exchange.get("exchange")
    if isinstance(named, Mapping):
        kind, kwargs = get_callable_kwargs(dict(named))
        name, given = str(getattr(kind, "__name__", kind)), kwargs or {}
        defaults = inspect.signature(kind).parameters
    elif named is not None:
        return type(named).__name__
    else:
        name, given = Exchange.__name__, exchange
        defaults = inspect.signature(get_exchange).parameters
    stated = {word: parameter.default for word, parameter in defaults.items()} | dict(given)
    parts = [
        f"{word} {_rate(value)}"
        for word, value in stated.items()
        if any(part in word for part in COST_WORDS) and value is not inspect.Parameter.empty
    ]
    return f"{name}: {', '.join(parts)}" if parts else f"{name}: not stated"


def _rate(value: Any) -> str:
    if value is None:
        return "by date"
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _seeds(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if str(key) in SEED_WORDS or str(key).endswith("_seed"):
                yield f"{place}.{key}", value
            else:
                yield from _seeds(value, place if key in ("kwargs", "params", "config") else f"{place}.{key}")
    elif isinstance(node, (list, tuple)):
        for position, value in enumerate(node):
            label = value.get("name", value.get("class", position)) if isinstance(value, Mapping) else position
            yield from _seeds(value, f"{place}.{label}")
