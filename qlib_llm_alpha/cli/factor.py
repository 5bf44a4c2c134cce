"""``qlib-llm-alpha factor``: what can be done with formulas on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from qlib_llm_alpha import wiring
from qlib_llm_alpha.cli.progress import progress_bar
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.factor.limits import Limits

if TYPE_CHECKING:
    import pandas as pd

    from qlib_llm_alpha.factor.check import CheckResult

LONGEST_LINE = Limits().text + 8  # bytes: the longest formula, a byte order mark and a line end
LONGEST_SKIP = 1 << 28  # bytes without a line end after which a file, such as /dev/full, is no text
LABEL = "Ref($close,-2)/Ref($close,-1)-1"
ECHO = 200  # characters of a refused line that are printed


def add_parser(commands: Any) -> None:
    """Add ``factor`` and its sub-commands."""
    parser = commands.add_parser("factor", help="check formulas", description="What can be done with formulas.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="say of each formula whether it may be used, and if not, why",
        description="One verdict for each line of FILE. Exit code 0: all may be used; 1: some refused; 2: bad call.",
    )
    check.add_argument(
        "file", metavar="FILE", help="text with one formula a line ('-': standard input); # starts a note"
    )
    check.add_argument(
        "--units",
        choices=("refuse", "warn"),
        default="refuse",
        help="what to do about a price plus a volume (default: refuse)",
    )
    check.add_argument("--json", action="store_true", help="print one JSON object a line")
    check.set_defaults(run=_check)
    evaluate = actions.add_parser(
        "eval",
        help="compute formulas for the members of a universe",
        description="Compute each formula of FILE for the members of a universe. Exit code 0: all were computed; 1: "
        "some were not, and the output says which and why; 2: bad call.",
    )
    _add_market(evaluate)
    evaluate.add_argument("--out", type=Path, metavar="FILE", help="write the values: .parquet or .csv")
    evaluate.set_defaults(run=_eval)
    score = actions.add_parser(
        "score",
        help="IC, rank IC, t, turnover and coverage of formulas",
        description="Score each formula of FILE on the members of a universe, and count it as a trial. No bar after "
        "--end is read. Exit codes as for eval.",
    )
    _add_market(score)
    score.add_argument("--label", default=LABEL, metavar="EXPR", help=f"what is to be forecast (default: {LABEL})")
    score.add_argument(
        "--ledger",
        type=Path,
        default=Path("ledger"),
        metavar="DIR",
        help="count each formula that was scored in the trial ledger of this folder (default: ledger)",
    )
    score.add_argument("--out", type=Path, metavar="FILE", help="write the table: .json, .csv or .parquet")
    score.add_argument(
        "--backend",
        choices=("loky", "threading", "ray", "dask"),
        help="spread the formulas over workers of this kind (default: none, this process alone)",
    )
    score.add_argument("--workers", type=int, default=2, metavar="N", help="so many of them (default: 2)")
    score.set_defaults(run=_score)


def _add_market(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help="text with one formula a line, 'name: formula' or the formula alone ('-': standard input); a factor set "
        "(.yaml); or the name of a built-in set",
    )
    parser.add_argument("--provider", type=Path, required=True, metavar="DIR", help="folder of the Qlib provider")
    parser.add_argument("--universe", default="all", help="a market of the provider (default: all)")
    parser.add_argument("--start", metavar="D", help="first day of the rows; earlier bars are read as well")
    parser.add_argument("--end", metavar="D", help="last day of the rows")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def _eval(args: argparse.Namespace) -> int:
    write = _writer(args.out, (".parquet", ".csv"))
    with progress_bar("formula") as progress:
        found = wiring.evaluate_formulas(
            args.file, args.provider, args.universe, start=args.start, end=args.end, progress=progress
        )
    if args.out is not None:
        write(found.values.reset_index())
    for name in found.values.columns:
        facts = _facts(found.values[name])
        shown = "  ".join(f"{what} {value:.6g}" for what, value in facts.items() if value is not None)
        print(json.dumps({"name": name, **facts}) if args.json else f"{_printable(_cut(name))}: {shown}")
    for name, refusal in found.refused.items():
        text = (
            json.dumps({"name": name, "refused": refusal})
            if args.json
            else _printable(f"refused {_cut(name)}: {refusal}")
        )
        print(text)
    return 1 if found.refused else 0


def _facts(column: pd.Series) -> dict[str, float | None]:
    """Describe the finite values of a column; None where there are none."""
    import numpy as np

    values = column.to_numpy(np.float64)
    finite = values[np.isfinite(values)]
    facts: dict[str, float | None] = {"cells": len(values), "coverage": len(finite) / len(values)}
    for what in ("mean", "std", "min", "median", "max"):
        facts[what] = float(getattr(np, what)(finite)) if len(finite) else None
    return facts


def _score(args: argparse.Namespace) -> int:
    write = _writer(args.out, (".parquet", ".csv", ".json"))
    with progress_bar("formula") as progress:
        found = wiring.score_formulas(
            args.file,
            args.provider,
            args.universe,
            label=args.label,
            start=args.start,
            end=args.end,
            ledger=args.ledger,
            backend=args.backend,
            workers=args.workers,
            progress=progress,
        )
    if args.out is not None:
        import pandas as pd

        write(pd.DataFrame([one.to_dict() for one in found]))
    if args.json:
        for one in found:
            print(json.dumps(one.to_dict()))
    else:
        columns = ("ic", "t_ic", "rank_ic", "rank_icir", "t_rank_ic", "turnover", "coverage", "days")
        print("  ".join(f"{column:>9}" for column in columns) + "  formula")
        for one in found:
            numbers = "  ".join(f"{getattr(one, column):>9.4g}" for column in columns)
            print(
                _printable(f"{numbers}  {_cut(one.name)}")
                if not one.refused
                else _printable(f"{'refused':>9}  {_cut(one.name)}: {one.refused}")
            )
    return 1 if any(one.refused for one in found) else 0


def _writer(out: Path | None, endings: tuple[str, ...]) -> Callable[[pd.DataFrame], None]:
    """Return what writes a table to ``out``, refusing another ending before anything is computed."""
    if out is not None and out.suffix not in endings:
        raise ConfigError(f"--out {str(out)!r}: expected a file that ends in {' or '.join(endings)}; rename it")

    def write(frame: pd.DataFrame) -> None:
        if out is None:
            return
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".parquet":
            frame.to_parquet(out, index=False)
        elif out.suffix == ".csv":
            frame.to_csv(out, index=False)
        else:
            out.write_text(frame.to_json(orient="records", indent=1) + "\n", encoding="utf-8")

    return write


def _check(args: argparse.Namespace) -> int:
    found, refused = 0, 0
    for result in _results(args.file, args.units):
        print(json.dumps(dataclasses.asdict(result)) if args.json else _line(result))
        found += 1
        refused += not result.ok
    if not found:
        raise ConfigError(
            f"{args.file}: expected one formula a line, found none; write for example $close/Ref($close,1)-1"
        )
    return 1 if refused else 0


def _results(file: str, units: Literal["refuse", "warn"]) -> Iterator[CheckResult]:
    """Give the verdict on each formula as it is read; bytes that are no UTF-8 are refused with their line."""
    with nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb") as stream:
        for number, (raw, whole) in enumerate(_lines(stream, file)):
            line = raw.decode("utf-8" if number else "utf-8-sig", errors="surrogateescape").strip()
            if line.startswith("#") or (whole and not line):
                continue
            yield wiring.check_formulas([line], units=units)[0] if whole else _too_long(line)


def _lines(stream: BinaryIO, file: str) -> Iterator[tuple[bytes, bool]]:
    """Give each line, or the beginning of one that is too long, and whether it is whole."""
    while line := stream.readline(LONGEST_LINE):
        whole = line.endswith(b"\n") or len(line) < LONGEST_LINE
        skipped, rest = 0, line
        while not whole and rest and not rest.endswith(b"\n"):
            rest = stream.readline(1 << 16)
            skipped += len(rest)
            if skipped > LONGEST_SKIP:
                raise ConfigError(f"{file}: no line end in {skipped} bytes; expected a text with one formula a line")
        yield line, whole


def _too_long(line: str) -> CheckResult:
    from qlib_llm_alpha.factor.check import CheckResult

    most = Limits().text
    detail = f"more than {most} characters, at most {most} are read; split the formula"
    return CheckResult(_cut(line), False, None, None, None, (), "too_long", detail)


def _cut(text: str) -> str:
    return text if len(text) <= ECHO else f"{text[:ECHO]}..."


def _line(result: CheckResult) -> str:
    detail = f"  [{result.reason}] {result.detail}" if result.reason else ""
    formula = result.expression if result.ok else _cut(result.expression)
    return _printable(f"{'ok' if result.ok else 'refused':8}{result.id or '-':13} {formula}{detail}")


def _printable(text: str) -> str:
    return text.encode("ascii", errors="backslashreplace").decode("ascii").translate(_CONTROLS)


# A formula can hold anything, also what a terminal takes for a command.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
