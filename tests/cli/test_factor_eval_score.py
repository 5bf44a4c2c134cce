"""``qlib-llm-alpha factor eval`` and ``score``: Qlib's numbers, members of the day, nothing after the end."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qlib.data import D

from qlib_llm_alpha.cli import main
from qlib_llm_alpha.data.fingerprint import provider_fingerprint
from qlib_llm_alpha.data.formula_values import formula_scores
from qlib_llm_alpha.data.provider_files import read_calendar, read_instruments
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.library.formula_file import read_formulas
from tests.support.provider import END, START

FORMULAS = {
    "reversal": "-1*($close/Ref($close,5)-1)",
    "smooth": "EMA($close,10)/$close",
    "spread": "Std($close/Ref($close,1)-1,20)",
}
LABEL = "Ref($close,-2)/Ref($close,-1)-1"
WARMUP = {"reversal": 5, "smooth": 30, "spread": 20}
FIRST, LAST = "2020-03-02", "2021-02-26"


@pytest.fixture
def call(small_provider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Return what runs a command on a text of formulas and gives its code, what it printed and what it complained."""

    def called(action: str, text: str | bytes, *options: str, provider: Path | None = None) -> tuple[int, str, str]:
        file = tmp_path / "formulas.txt"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        folder = small_provider if provider is None else provider
        counted = ["--ledger", str(tmp_path / "ledger")] if action == "score" and "--ledger" not in options else []
        code = main(["factor", action, str(file), "--provider", str(folder), *counted, *options])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return called


@pytest.fixture
def without_accounts(small_provider: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_provider, tmp_path / "bars_only", ignore=shutil.ignore_patterns("financial")))


@pytest.fixture
def frame(call, tmp_path: Path):
    """Return what computes formulas and reads the written table."""

    def computed(text: str, *options: str, provider: Path | None = None) -> pd.DataFrame:
        out = tmp_path / "out" / "values.parquet"
        code, _, complaint = call("eval", text, *options, "--out", str(out), provider=provider)
        assert code == 0, complaint
        table: pd.DataFrame = pd.read_parquet(out).set_index(["datetime", "instrument"])
        return table

    return computed


def lines(formulas: dict[str, str]) -> str:
    return "".join(f"{name}: {text}\n" for name, text in formulas.items())


def rows_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def members(provider: Path, universe: str = "csi300") -> pd.DataFrame:
    """Return days x instruments, true where the market's file says so."""
    days = read_calendar(provider)
    spans = read_instruments(provider, universe)
    found = pd.DataFrame(False, index=pd.DatetimeIndex(days), columns=sorted({code for code, _, _ in spans}))
    for code, first, last in spans:
        found.loc[(found.index >= first) & (found.index <= last), code] = True
    return found


def by_qlib(universe: str = "csi300", **formulas: str) -> dict[str, pd.DataFrame]:
    """Return stock Qlib's values over the whole history, days x instruments; Qlib must be open."""
    codes = sorted(D.list_instruments(D.instruments(universe), as_list=True))
    table = D.features(codes, list(formulas.values()), START, END)
    return {name: table.iloc[:, place].unstack("instrument") for place, name in enumerate(formulas)}


# Values


def test_values_are_qlibs_over_the_whole_history_for_the_members_of_the_day(frame, qlib_small: Path) -> None:
    found = frame(lines(FORMULAS), "--universe", "csi300", "--start", FIRST, "--end", LAST)
    expected = by_qlib(**FORMULAS)
    member = members(qlib_small).loc[FIRST:LAST]
    bars = by_qlib(close="$close")["close"].notna()
    since_first = bars.cummax().cumsum() - 1
    assert list(found.columns) == list(FORMULAS)
    for name in FORMULAS:
        whole = expected[name].where(since_first >= WARMUP[name]).reindex(columns=member.columns)
        asked = whole.loc[FIRST:LAST].where(member)
        assert found[name].notna().sum() > 5000
        pd.testing.assert_frame_equal(
            found[name].unstack("instrument").astype(float),
            asked.loc[:, member.any()].astype(float),
            rtol=1e-5,
            check_names=False,
            check_freq=False,
            check_column_type=False,
            check_index_type=False,
        )


def test_there_is_a_row_for_each_member_and_day_in_order(frame, small_provider: Path) -> None:
    found = frame("$close\n", "--universe", "csi300", "--start", FIRST, "--end", LAST)
    wanted = members(small_provider).loc[FIRST:LAST].stack()
    assert list(found.index) == list(wanted[wanted].index)
    assert found.dtypes.tolist() == [np.dtype("float32")]


def test_a_text_is_warmed_up_strictly_and_alpha158_as_qlib_does(
    frame, small_provider: Path, tmp_path: Path, qlib_small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    formula = "Mean($close,20)/$close"
    strict = frame(f"MA20: {formula}\n", "--universe", "csi300", "--end", "2019-03-29")["MA20"]
    out = tmp_path / "alpha158.parquet"
    options = ["--provider", str(small_provider), "--universe", "csi300", "--end", "2019-03-29"]
    assert main(["factor", "eval", "alpha158", *options, "--out", str(out)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 158
    partial = pd.read_parquet(out).set_index(["datetime", "instrument"])["MA20"]
    day = read_calendar(small_provider)
    assert strict.loc[: day[18]].isna().all()
    assert strict.loc[day[19]].notna().sum() > 15
    assert partial.loc[day[0]].notna().sum() > 15
    expected = by_qlib(MA20=formula)["MA20"].stack()
    pd.testing.assert_series_equal(
        partial.dropna().astype(float),
        expected.reindex(partial.dropna().index).astype(float),
        rtol=1e-5,
        check_names=False,
    )


def test_a_later_start_gives_the_same_values(frame) -> None:
    text = lines(FORMULAS) + "ranked: Mean(CSRank($close/Ref($close,1)-1),5)\n"
    whole = frame(text, "--universe", "csi300")
    late = frame(text, "--universe", "csi300", "--start", "2021-01-04")
    pd.testing.assert_frame_equal(late, whole.loc["2021-01-04":], check_exact=True)


def test_a_cross_section_is_taken_over_the_members_of_each_day(frame, qlib_small: Path) -> None:
    text = "now: CSRank($volume)\nbefore: Mean(CSRank($volume),3)\n"
    found = frame(text, "--universe", "csi300", "--start", FIRST, "--end", LAST)
    member = members(qlib_small)
    volume = by_qlib(volume="$volume")["volume"].reindex(columns=member.columns)
    # Qlib's frame has no rows of those who are not members; a window runs over the bars that there are.
    rank = volume.where(member).rank(axis=1, pct=True)
    assert (member.loc[FIRST:LAST].nunique() > 1).any(), "somebody has to come or go"
    for name, expected in {"now": rank, "before": rank.rolling(3, min_periods=1).mean().where(member)}.items():
        shown = found[name].dropna()
        reference = expected.stack().reindex(shown.index)
        np.testing.assert_allclose(shown, reference, rtol=1e-6)
        assert len(shown) > 5000


# Scores


def test_scores_are_those_of_pandas(call, qlib_small: Path) -> None:
    options = ("--universe", "csi300", "--start", FIRST, "--end", LAST, "--json")
    code, out, _ = call("score", f"reversal: {FORMULAS['reversal']}\n", *options)
    assert code == 0
    (row,) = rows_of(out)
    tables = by_qlib(factor=FORMULAS["reversal"], label=LABEL)
    member = members(qlib_small).loc[FIRST:LAST]
    both = member & tables["factor"].notna().reindex_like(member) & tables["label"].notna().reindex_like(member)
    # The last two labels need bars after the end.
    both.iloc[-2:] = False
    factor, label = (tables[name].reindex_like(member).where(both) for name in ("factor", "label"))
    enough = both.sum(axis=1) >= 10
    ic = factor.corrwith(label, axis=1)[enough]
    rank_ic = factor.rank(axis=1).corrwith(label.rank(axis=1), axis=1)[enough]
    assert row["days"] == len(rank_ic) == len(member) - 2
    assert row["ic"] == pytest.approx(ic.mean(), abs=1e-6)
    assert row["icir"] == pytest.approx(ic.mean() / ic.std(), abs=1e-5)
    assert row["rank_ic"] == pytest.approx(rank_ic.mean(), abs=1e-6)
    assert row["rank_icir"] == pytest.approx(rank_ic.mean() / rank_ic.std(), abs=1e-5)
    assert (row["name"], row["formula"], row["refused"]) == ("reversal", "-1*($close/Ref($close,5)-1)", "")
    assert 0 < row["turnover"] < 1
    assert 0.9 < row["coverage"] <= 1


def test_another_label_is_another_score(call) -> None:
    options = ("--universe", "csi300", "--start", FIRST, "--json")
    _, one, _ = call("score", "$volume\n", *options)
    _, five, _ = call("score", "$volume\n", *options, "--label", "Ref($close,-6)/Ref($close,-1)-1")
    assert rows_of(five)[0]["days"] == rows_of(one)[0]["days"] - 4
    assert rows_of(five)[0]["ic"] != rows_of(one)[0]["ic"]


@pytest.mark.parametrize("action", ["eval", "score"])
def test_nothing_after_the_end_is_read(action: str, call, small_provider: Path, tmp_path: Path) -> None:
    poisoned = tmp_path / "poisoned"
    shutil.copytree(small_provider, poisoned)
    cut = int(np.searchsorted(read_calendar(poisoned), np.datetime64(LAST), side="right"))
    for number, path in enumerate(sorted((poisoned / "features").rglob("*.day.bin"))):
        content = np.fromfile(path, dtype="<f4")
        later = max(1, 1 + cut - int(content[0]))
        content[later:] = np.random.default_rng(number).uniform(1, 99, len(content[later:]))
        content.tofile(path)
    text = lines(FORMULAS) + "ranked: CSRank($close)\n"
    options = ("--universe", "csi300", "--start", FIRST, "--json")
    assert call(action, text, *options, "--end", LAST, provider=poisoned) == call(action, text, *options, "--end", LAST)
    assert call(action, text, *options, provider=poisoned) != call(action, text, *options), "the poison works"


# Counting


def test_each_formula_that_was_scored_is_a_trial_and_what_was_refused_is_none(
    call, small_provider: Path, tmp_path: Path
) -> None:
    text = f"reversal: {FORMULAS['reversal']}\nahead: Ref($close,-1)\n$volume\n$close/($close>2*$high)\n"
    options = ("--universe", "csi300", "--start", FIRST, "--end", LAST, "--json")
    _, out, _ = call("score", text, *options)
    shown = {row["formula"]: row for row in rows_of(out) if not row["refused"]}
    ledger = TrialLedger(tmp_path / "ledger")
    trials = ledger.trials()
    assert list(trials["expression"]) == list(shown) == ["-1*($close/Ref($close,5)-1)", "$volume"]
    assert list(trials["factor_id"]) == [parse(formula).id for formula in shown]
    days = read_calendar(small_provider)
    scored = days[(days >= np.datetime64(FIRST)) & (days <= np.datetime64(LAST))][:-2]
    same = ["proposer", "run", "data", "label", "horizon", "ic_kind", "universe", "membership", "start", "end"]
    who = ("human", "factor score", provider_fingerprint(small_provider))
    basis = (LABEL, 2, "rank_ic", "csi300", "members of the day", str(scored[0]), str(scored[-1]))
    assert trials[same].drop_duplicates().values.tolist() == [[*who, *basis]]
    series = ledger.series()
    assert list(series.index) == list(pd.DatetimeIndex(scored))
    for row, formula in zip(trials.index, shown, strict=True):
        assert series[row].mean() == pytest.approx(shown[formula]["rank_ic"], abs=1e-9)
        assert trials["ic"][row] == pytest.approx(shown[formula]["rank_ic"], abs=1e-9)
        assert trials["t"][row] == pytest.approx(shown[formula]["t_rank_ic"], abs=1e-9)
    assert ledger.verify() == []


def test_the_same_again_is_no_new_trial_and_other_days_or_another_label_are(call, tmp_path: Path) -> None:
    options = ("--universe", "csi300", "--start", FIRST)
    ledger = TrialLedger(tmp_path / "ledger")
    counts = []
    for more in ((), (), ("--backend", "threading"), ("--end", LAST), ("--label", "Ref($close,-6)/Ref($close,-1)-1")):
        call("score", "$volume\n", *options, *more)
        counts.append(ledger.count())
    assert counts == [1, 1, 1, 2, 3]


def test_what_was_scored_by_hand_and_then_mined_on_the_same_days_is_one_trial(
    call, small_provider: Path, tmp_path: Path
) -> None:
    days = ("--start", FIRST, "--end", LAST)
    call("score", "$volume\n", "--universe", "csi300", *days)
    places = ["--ledger", str(tmp_path / "ledger"), "--out", str(tmp_path / "session")]
    formulas = ["--trials", "0", "--formulas", str(tmp_path / "formulas.txt")]
    market = ["--provider", str(small_provider), "--universe", "csi300"]
    assert main(["mine", *market, *days, *formulas, *places]) == 0
    assert TrialLedger(tmp_path / "ledger").count() == 1


def test_a_built_in_set_is_counted_by_who_proposed_its_factors(
    small_provider: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["factor", "score", "seed_bars", "--provider", str(small_provider), "--universe", "csi300", "--start", FIRST])
    assert capsys.readouterr().out
    assert set(TrialLedger(tmp_path / "ledger").trials()["proposer"]) == {"seed"}, "ledger is the default"


def test_nothing_scored_is_nothing_counted(call, tmp_path: Path) -> None:
    assert call("score", "Ref($close,-1)\n", "--universe", "csi300")[0] == 1
    assert not (tmp_path / "ledger").exists()


def test_a_ledger_that_is_a_file_is_a_bad_call_before_anything_is_read(call, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    options = ("--ledger", str(tmp_path / "taken"))
    code, out, complaint = call("score", "$close\n", *options, provider=tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert "taken" in complaint


# Names and refusals


@pytest.mark.parametrize("action", ["eval", "score"])
def test_what_is_refused_is_named_with_its_reason_and_the_others_are_computed(
    action: str, call, without_accounts: Path
) -> None:
    text = "good: $close/$open\nahead: Ref($close,-1)\n$clsoe*2\n\n# a note\nno.accounts-yet: P($$payables_q)/$close\n"
    code, out, _ = call(action, text, "--universe", "csi300", "--json", provider=without_accounts)
    assert code == 1
    rows = {row["name"]: row for row in rows_of(out)}
    assert set(rows) == {"good", "ahead", "$clsoe*2", "no.accounts-yet"}
    assert not rows["good"].get("refused")
    assert rows["ahead"]["refused"].startswith("[look_ahead]")
    assert rows["$clsoe*2"]["refused"].startswith("[unknown_field]")
    assert rows["no.accounts-yet"]["refused"].startswith("[unknown_field] no instrument of the provider has")
    shown = call(action, text, "--universe", "csi300", provider=without_accounts)[1]
    assert shown.count("refused") == 3


@pytest.mark.parametrize("action", ["eval", "score"])
def test_all_refused_is_exit_code_1_and_no_crash(action: str, call) -> None:
    code, out, _ = call(action, "Ref($close,-1)\n", "--universe", "csi300")
    assert code == 1
    assert "[look_ahead]" in out


def test_a_field_that_only_this_provider_has_may_be_named(call, small_provider: Path, tmp_path: Path) -> None:
    provider = tmp_path / "with_turn"
    shutil.copytree(small_provider, provider)
    for folder in (provider / "features").iterdir():
        shutil.copy(folder / "volume.day.bin", folder / "turn.day.bin")
    code, out, _ = call("eval", "$turn\n$volume\n", "--universe", "csi300", "--json", provider=provider)
    assert code == 0
    turn, volume = rows_of(out)
    assert {**turn, "name": ""} == {**volume, "name": ""}


def test_infinite_values_are_left_out_of_the_summary_and_json_stays_json(call) -> None:
    code, out, _ = call("eval", "hole: $close/($close>2*$high)\n", "--universe", "csi300", "--json")
    assert code == 0
    (row,) = rows_of(out)
    assert row["coverage"] == 0
    assert row["mean"] is None


def test_a_formula_without_any_value_is_refused_by_score(call) -> None:
    code, out, _ = call("score", "$close/($close>2*$high)\n", "--universe", "csi300", "--json")
    assert code == 1
    assert rows_of(out)[0]["refused"].startswith("[all_missing]")


def test_a_dash_reads_standard_input(call, monkeypatch: pytest.MonkeyPatch, small_provider: Path, capsys) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf$close\n")))
    assert main(["factor", "eval", "-", "--provider", str(small_provider), "--json"]) == 0
    assert rows_of(capsys.readouterr().out)[0]["name"] == "$close"


# Files


@pytest.mark.parametrize("ending", ["parquet", "csv", "json"])
def test_the_table_of_scores_is_written_in_each_form(ending: str, call, tmp_path: Path) -> None:
    out = tmp_path / "new" / f"scores.{ending}"
    code, printed, _ = call("score", "$volume\nRef($close,-1)\n", "--universe", "csi300", "--json", "--out", str(out))
    assert code == 1
    readers = {"parquet": pd.read_parquet, "csv": pd.read_csv, "json": pd.read_json}
    table = readers[ending](out)
    assert list(table["name"]) == ["$volume", "Ref($close,-1)"]
    assert table["ic"][0] == pytest.approx(rows_of(printed)[0]["ic"])
    assert pd.isna(table["ic"][1])


def test_values_are_written_as_csv_too(call, tmp_path: Path) -> None:
    out = tmp_path / "values.csv"
    assert call("eval", "$volume\n", "--universe", "csi300", "--end", "2019-02-01", "--out", str(out))[0] == 0
    assert list(pd.read_csv(out).columns) == ["datetime", "instrument", "$volume"]


@pytest.mark.parametrize(("action", "name"), [("eval", "values.xlsx"), ("eval", "values.json"), ("score", "scores")])
def test_another_ending_is_refused_before_anything_is_read(action: str, name: str, call, tmp_path: Path) -> None:
    code, out, complaint = call(action, "$close\n", "--out", str(tmp_path / name), provider=tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert name in complaint
    assert ".parquet or .csv" in complaint


# Bad calls


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--universe", "csi3000"), "'csi3000'"),
        (("--start", "2031-01-01"), "2031-01-01"),
        (("--start", "2021-01-04", "--end", "2020-01-02"), "no trading day"),
        (("--end", "yesterday-ish"), "'yesterday-ish' is not a date"),
        (("--end", "2001-01-01"), "2001-01-01"),
    ],
)
@pytest.mark.parametrize("action", ["eval", "score"])
def test_an_unknown_universe_or_date_is_a_bad_call_of_one_line(
    action: str, options: tuple[str, ...], said: str, call
) -> None:
    code, out, complaint = call(action, "$close\n", *options)
    assert (code, out) == (2, "")
    assert said in complaint
    assert len(complaint.strip().splitlines()) == 1


@pytest.mark.parametrize("action", ["eval", "score"])
def test_a_folder_that_is_no_provider_is_a_bad_call_of_one_line(action: str, call, tmp_path: Path) -> None:
    code, _, complaint = call(action, "$close\n", provider=tmp_path)
    assert code == 2
    assert "expected a Qlib provider" in complaint
    assert len(complaint.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("label", "said"),
    [("$close", "no forecast"), ("Ref($clsoe,-1)", "unknown_field"), ("P($$payables_q)/Ref($close,-1)", "no instr")],
)
def test_a_label_that_is_known_beforehand_or_cannot_be_read_is_a_bad_call(
    label: str, said: str, call, without_accounts: Path
) -> None:
    options = ("--universe", "csi300", "--label", label)
    code, _, complaint = call("score", "$close\n", *options, provider=without_accounts)
    assert code == 2
    assert said in complaint
    assert len(complaint.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "said"), [("", "found none"), ("a: $close\na: $open\n", "'a'"), ("# only notes\n", "found none")]
)
def test_a_text_that_says_nothing_or_a_name_twice_is_a_bad_call(text: str, said: str, call) -> None:
    code, _, complaint = call("eval", text)
    assert code == 2
    assert said in complaint


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_workers_find_what_one_process_finds(small_provider: Path, tmp_path: Path, backend: str) -> None:
    file = tmp_path / "formulas.txt"
    file.write_text(
        "mom: $close/Ref($close,20)-1\nCSRank($volume)\nbeta: $change-ChangeInstrument('SH000300',$change)\n"
    )
    formulas, warmup = read_formulas(str(file))
    label = parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)
    alone = formula_scores(formulas, small_provider, "csi300", label, start="2020-01-02", warmup=warmup)
    spread = formula_scores(
        formulas,
        small_provider,
        "csi300",
        label,
        start="2020-01-02",
        warmup=warmup,
        backend=backend,
        workers=2,  # type: ignore[arg-type]
    )
    assert spread.scores == alone.scores
    assert [one.days > 100 for one in alone.scores] == [True] * 3
    np.testing.assert_array_equal(spread.rank_ic, alone.rank_ic)
    assert np.isfinite(alone.rank_ic).sum(axis=0).tolist() == [one.days for one in alone.scores]
    assert spread.basis == alone.basis
