"""Where the command line's requests meet the rooms; each function serves one command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from qlib_llm_alpha.chain import Fault, Head
    from qlib_llm_alpha.data.check import CheckReport
    from qlib_llm_alpha.data.embedded.simulate import Kind
    from qlib_llm_alpha.data.embedded.write import WrittenMarket
    from qlib_llm_alpha.data.formula_values import FormulaFrame, FormulaScore
    from qlib_llm_alpha.data.mined import MiningRequest
    from qlib_llm_alpha.data.sources.writing import ImportReport
    from qlib_llm_alpha.engine.distribute import Backend
    from qlib_llm_alpha.engine.warmup import WarmUp
    from qlib_llm_alpha.evaluation.ledger import LedgerSummary
    from qlib_llm_alpha.factor.check import CheckResult
    from qlib_llm_alpha.guard.cross import CrossReport
    from qlib_llm_alpha.guard.finding import GuardReport
    from qlib_llm_alpha.guard.memory_suite import MemoryReport
    from qlib_llm_alpha.guard.selftest import SelfTestRow
    from qlib_llm_alpha.library.describe import Listed, LoaderConfig, SetDiff
    from qlib_llm_alpha.library.factor_set import FactorSet
    from qlib_llm_alpha.llm.audit import AuditFault, Lineage
    from qlib_llm_alpha.llm.diagnosis import Diagnosis
    from qlib_llm_alpha.mining.compare import Comparison
    from qlib_llm_alpha.mining.exploring import Feedback
    from qlib_llm_alpha.mining.transcript import Port


def import_market_data(
    kind: str,
    folder: Path,
    out: Path,
    *,
    market: str = "cn",
    start: str | None = None,
    end: str | None = None,
    update: bool = False,
    progress: bool = True,
) -> ImportReport:
    """Write a provider from a folder of Parquet or CSV files, or append its new days to one."""
    import numpy as np

    from qlib_llm_alpha.data.sources.parquet import ParquetSource
    from qlib_llm_alpha.data.sources.updating import update_bars
    from qlib_llm_alpha.data.sources.vendor_csv import VendorCsvSource
    from qlib_llm_alpha.data.sources.writing import import_bars
    from qlib_llm_alpha.errors import ConfigError

    def day(name: str, text: str | None) -> np.datetime64 | None:
        try:
            return None if text is None else np.datetime64(text, "D")
        except ValueError as error:
            raise ConfigError(f"{name} is {text!r}; expected YYYY-MM-DD; give a date like 2018-01-02") from error

    first, last = day("--start", start), day("--end", end)
    if update and first is not None:
        raise ConfigError(f"--start {start} was given with --update; a provider's start is fixed; leave --start out")
    source = ParquetSource(folder, market=market) if kind == "parquet" else VendorCsvSource(folder, market=market)
    if update:
        return update_bars(source, out, end=last, progress=progress)
    return import_bars(source, out, start=first, end=last, progress=progress)


def check_market_data(provider: Path) -> CheckReport:
    """Look for everything that is wrong with a provider."""
    from qlib_llm_alpha.data.check import check_provider

    return check_provider(provider)


def write_embedded_market(
    out: Path,
    *,
    kind: Kind = "planted",
    instruments: int = 100,
    start: str = "2017-01-03",
    end: str = "2023-12-29",
    seed: int = 7,
    force: bool = False,
) -> WrittenMarket:
    """Write the embedded market as a provider, or verify the one that is there."""
    from qlib_llm_alpha.data.embedded.write import ensure_market

    return ensure_market(out, kind=kind, instruments=instruments, start=start, end=end, seed=seed, force=force)


def embedded_plant_table(*, seeds: int, kind: Kind, instruments: int, start: str, end: str) -> str:
    """Measure the plants of the embedded market over the seeds 1 to ``seeds``; a Markdown table."""
    from qlib_llm_alpha.data.embedded.tables import plant_table

    return plant_table(range(1, seeds + 1), kind=kind, instruments=instruments, start=start, end=end)


def embedded_moment_table(folder: Path, *, kind: Kind, instruments: int, start: str, end: str, seed: int) -> str:
    """Set the moments of the embedded market beside those of the bars in a folder; a Markdown table."""
    from qlib_llm_alpha.data.embedded.tables import moment_table

    return moment_table(folder, kind=kind, instruments=instruments, start=start, end=end, seed=seed)


def check_formulas(formulas: Iterable[str], *, units: Literal["refuse", "warn"] = "refuse") -> list[CheckResult]:
    """Return the verdict on each formula: whether it may be used, and if not, why."""
    from qlib_llm_alpha.factor.check import check_expression

    return [check_expression(formula, units=units) for formula in formulas]


def evaluate_formulas(
    file: str,
    provider: Path,
    universe: str,
    *,
    start: str | None = None,
    end: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FormulaFrame:
    """Compute the formulas of a file or a factor set for the members of a universe."""
    from qlib_llm_alpha.data.bars import provider_fields
    from qlib_llm_alpha.data.formula_values import formula_frame
    from qlib_llm_alpha.library.formula_file import read_formulas

    formulas, warmup = read_formulas(file, provider_fields(provider))
    return formula_frame(formulas, provider, universe, start=start, end=end, warmup=warmup, progress=progress)


def score_formulas(
    file: str,
    provider: Path,
    universe: str,
    *,
    label: str,
    start: str | None = None,
    end: str | None = None,
    ledger: Path,
    backend: Backend | None = None,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Sequence[FormulaScore]:
    """Score the formulas of a file or a factor set against a label, and count them before anyone sees a score."""
    from qlib_llm_alpha.data.bars import provider_fields
    from qlib_llm_alpha.data.fingerprint import provider_fingerprint
    from qlib_llm_alpha.data.formula_values import formula_scores
    from qlib_llm_alpha.evaluation.ledger import TrialLedger
    from qlib_llm_alpha.factor.expression import parse
    from qlib_llm_alpha.library.factor_set import builtin_names, load_factor_set
    from qlib_llm_alpha.library.formula_file import read_formulas

    book = TrialLedger(ledger)
    formulas, warmup = read_formulas(file, provider_fields(provider))
    target = parse(label, allow_future=True, fields=provider_fields(provider))
    found = formula_scores(
        formulas,
        provider,
        universe,
        target,
        start=start,
        end=end,
        warmup=warmup,
        backend=backend,
        workers=workers,
        progress=progress,
    )
    known = load_factor_set(file).factors if file in builtin_names() else ()
    origins = {factor.expression.id: factor.origin for factor in known}
    found.enter(book, data=provider_fingerprint(provider), run="factor score", proposers=origins)
    return found.scores


def warm_up_engine(progress: Callable[[int, int], None] | None = None) -> WarmUp:
    """Compile the engine's kernels for this machine, in two processes."""
    from qlib_llm_alpha.engine.warmup import warm_up

    return warm_up(progress, processes=2)


def mine_factors(
    provider: Path,
    universe: str,
    *,
    out: Path,
    ledger: Path,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **asked: Any,
) -> None:
    """Propose formulas, judge them on the search segment, and write the session's folder.

    ``asked`` holds the options of ``qlib-llm-alpha mine`` by their names.
    """
    from qlib_llm_alpha.data.mined import run_mining
    from qlib_llm_alpha.evaluation.ledger import TrialLedger

    run_mining(_mining_request(provider, universe, **asked), out, TrialLedger(ledger), resume=resume, progress=progress)


def chat(
    provider: Path, universe: str, *, out: Path, ledger: Path, port: Port, resume: bool = False, **asked: Any
) -> None:
    """Let a person and a model work an idea out, judge what they arrive at, and write the session's folder."""
    from qlib_llm_alpha.data.mined import run_mining
    from qlib_llm_alpha.evaluation.ledger import TrialLedger

    request = _mining_request(provider, universe, proposer="chat", **asked)
    run_mining(request, out, TrialLedger(ledger), resume=resume, port=port)


def compare_proposers(
    provider: Path,
    universe: str,
    *,
    out: Path,
    ledger: Path,
    proposers: Sequence[str],
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **asked: Any,
) -> Comparison:
    """Let several proposers, and those that learn also without and with shuffled results, try as many formulas each."""
    from qlib_llm_alpha.data.mined import compare_mining
    from qlib_llm_alpha.evaluation.ledger import TrialLedger

    request = _mining_request(provider, universe, **asked)
    return compare_mining(request, proposers, out, TrialLedger(ledger), resume=resume, progress=progress)


def _mining_request(
    provider: Path,
    universe: str,
    *,
    start: str,
    end: str,
    label: str,
    proposer: str = "random",
    tune: tuple[str, str] | None = None,
    trials: int = 500,
    shortlist: int = 50,
    formulas: Sequence[str] = (),
    library: str | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    feedback: Feedback = "true",
    extend: Path | None = None,
    not_blind: bool = False,
    documents: Path | None = None,
    **model: Any,
) -> MiningRequest:
    from qlib_llm_alpha.data.mined import MiningRequest
    from qlib_llm_alpha.mining.llm_session import ModelPlan

    return MiningRequest(
        provider=provider,
        universe=universe,
        start=start,
        end=end,
        label=label,
        proposer=proposer,
        tune=tune,
        trials=trials,
        shortlist=shortlist,
        formulas=tuple(formulas),
        library=library,
        alpha=alpha,
        seed=seed,
        feedback=feedback,
        extend=extend,
        model=ModelPlan(documents=None if documents is None else str(documents), blind=not not_blind, **model),
    )


def run_self_test(
    *, seed: int = 0, trials: int = 300, progress: Callable[[int, int], None] | None = None
) -> list[SelfTestRow]:
    """Try the evidence on markets whose truth is known."""
    from qlib_llm_alpha.guard.selftest import self_test

    return self_test(seed=seed, trials=trials, progress=progress)


def show_ledger(folder: Path) -> LedgerSummary:
    """Count what a ledger holds, and how many independent trials its trials amount to."""
    from qlib_llm_alpha.evaluation.ledger import open_ledger, summarise

    return summarise(open_ledger(folder))


def verify_ledger(folder: Path, anchor: Head | None = None) -> list[Fault]:
    """Name everything in a ledger that is not as it was written."""
    from qlib_llm_alpha.evaluation.ledger import open_ledger

    return open_ledger(folder).verify(anchor)


def cross_validate_formulas(
    file: str,
    markets: Sequence[str],
    periods: Sequence[str],
    *,
    costs_bps: Sequence[float],
    lags: Sequence[int],
    alpha: float,
    agreement: float,
    draws: int,
    block: int,
    seed: int,
    config: Path | None = None,
    ledger: Path | None = None,
    run: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> CrossReport:
    """Score the formulas of a file or a factor set over markets, periods, costs and lags."""
    from qlib_llm_alpha.evaluation.cross import Resampling
    from qlib_llm_alpha.evaluation.ledger import TrialLedger
    from qlib_llm_alpha.guard.cross import Grid, cross_validate_folders, parse_market, parse_period

    resampling = Resampling(block=block, draws=draws, seed=seed)
    grid = Grid([parse_period(text) for text in periods], lags, costs_bps, alpha, agreement, resampling)
    return cross_validate_folders(
        file,
        [parse_market(text) for text in markets],
        grid,
        config=config,
        ledger=None if ledger is None else TrialLedger(ledger),
        run=run,
        progress=progress,
    )


def run_guards(
    config: Path,
    *,
    guards: Sequence[str] | None = None,
    with_model: bool = False,
    days: int = 2,
    seed: int = 0,
    timeout_s: float,
) -> GuardReport:
    """Run the leak guards on the handler, the segments and the model of a workflow file."""
    from qlib_llm_alpha.guard.workflow_file import guard_workflow

    return guard_workflow(config, guards=guards, with_model=with_model, days=days, seed=seed, timeout_s=timeout_s)


def list_factor_sets(folder: Path | None = None) -> tuple[Listed, ...]:
    """Return the built-in factor sets and those of a folder."""
    from qlib_llm_alpha.library.describe import listed_sets

    return listed_sets(folder)


def open_factor_set(ref: str) -> FactorSet:
    """Return a factor set by name, id, file or session."""
    from qlib_llm_alpha.library.describe import open_set

    return open_set(ref)


def compare_factor_sets(old: str, new: str) -> SetDiff:
    """Return what a factor set has that another has not."""
    from qlib_llm_alpha.library.describe import compare_sets, open_set

    return compare_sets(open_set(old), open_set(new))


def export_factor_set(ref: str) -> LoaderConfig:
    """Return a factor set as Qlib's own data loader takes it."""
    from qlib_llm_alpha.library.describe import loader_config, open_set

    return loader_config(open_set(ref))


def verify_session(folder: Path) -> list[AuditFault]:
    """Compare the trail of a session with its journal, its documents and its library."""
    from qlib_llm_alpha.mining.session_audit import verify

    return verify(folder)


def trace_factor(folder: Path, factor: str) -> Lineage:
    """Follow a factor back to the calls, prompts, documents and quotes it comes from."""
    from qlib_llm_alpha.llm.audit import trace_factor as trace

    return trace(folder, factor)


def diagnose(*, probe: bool = False, models: Path | None = None) -> Diagnosis:
    """Look at this machine and at the endpoint of the language model."""
    from qlib_llm_alpha.llm import diagnosis
    from qlib_llm_alpha.mining.llm_session import shipped_recordings

    return diagnosis.diagnose(models=models, recordings=shipped_recordings(), probe=probe)


def probe_model_memory(
    provider: Path,
    universe: str,
    out: Path,
    *,
    start: str,
    end: str,
    windows: Sequence[tuple[str, str]],
    questions: int,
    buffer_days: int,
    seed: int,
    **model: Any,
) -> MemoryReport:
    """Hold a model's cut-off against test windows, and ask what it remembers of a provider's market."""
    from datetime import datetime, timezone

    from qlib_llm_alpha.guard.memory_market import probe_memory
    from qlib_llm_alpha.mining.llm_session import ModelPlan

    return probe_memory(
        provider,
        universe,
        ModelPlan(**model),
        out,
        start=start,
        end=end,
        windows=windows,
        questions=questions,
        buffer_days=buffer_days,
        seed=seed,
        today=datetime.now(timezone.utc).date(),
    )
