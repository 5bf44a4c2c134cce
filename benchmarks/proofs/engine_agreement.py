"""Ask stock Qlib and our provider for random formulas on three markets, and compare the frames.

``odd`` is a small market in which everything goes wrong that can (``tests/support/odd_market.py``), written to
--provider if it is not there; ``embedded`` and ``real`` are read from --provider. What counts as agreement, and which
cells are exempt because stock Qlib's own number is rounding noise, say ``tests/support/agreement.py`` and
``tests/support/doubt.py``.

One JSON line per batch is appended to --out; batches already there are skipped, so that the command resumes::

    python benchmarks/proofs/engine_agreement.py --market odd --provider odd --out odd.jsonl
    python benchmarks/proofs/engine_agreement.py --market embedded --provider embedded --out embedded.jsonl
    python benchmarks/proofs/engine_agreement.py --market real --provider cn --until 2024-06-28 --out real.jsonl
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import qlib
from qlib.contrib.data.loader import Alpha158DL, Alpha360DL
from qlib.data import D
from qlib.data.data import LocalDatasetProvider

sys.path.insert(0, str(Path(__file__).parents[2]))

from qlib_llm_alpha.data.provider import PanelDatasetProvider
from qlib_llm_alpha.data.provider_files import (
    feature_path,
    read_calendar,
    read_feature,
    read_instruments,
    write_calendar,
    write_feature,
    write_instruments,
)
from qlib_llm_alpha.ops.ours import OPERATORS
from tests.support import odd_market
from tests.support.agreement import Column, compare
from tests.support.qlib_texts import formula

BATCH = 25
INDEX = "SH000300"
BARS = ("$open", "$high", "$low", "$close", "$volume", "$amount", "$change")
UNIVERSE = {"odd": "stocks", "embedded": "csi300", "real": "csi300"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the batches that are missing, then print one table; 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--market", choices=tuple(UNIVERSE), required=True)
    parser.add_argument("--provider", type=Path, required=True)
    parser.add_argument("--expressions", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--until", help="cut the data after this day, before anything is computed")
    parser.add_argument("--every", type=int, default=1, help="only every n-th instrument")
    parser.add_argument("--alphas", action="store_true", help="Alpha158 and Alpha360 as well")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a batch; appended to")
    arguments = parser.parse_args(argv)

    key = {name: getattr(arguments, name) for name in ("market", "seed", "until", "every")}
    key["pandas"] = pd.__version__
    rows = _rows_of(arguments.out, key)
    done = {row["batch"] for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        opened = False
        for name, texts in _batches(arguments):
            if name in done:
                continue
            if not opened:
                universe = _open(arguments, Path(folder))
                opened = True
            row = key | {"batch": name} | _run(universe, texts)
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(_line(name, row), flush=True)
            rows.append(row)
    print(summary(rows))
    return int(any(not _column(each).good for row in rows for each in row["columns"]))


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table over all batches, and the formulas that differ, shortest first."""
    columns = [_column(each) for row in rows for each in row["columns"]]
    cells = sum(column.cells for column in columns)
    bad = sorted((column for column in columns if not column.good), key=lambda column: len(column.text))
    figures = {
        "expressions": len(columns),
        "cells": cells,
        "identical pattern": sum(column.pattern == 0 for column in columns),
        "all bits identical": sum(column.same_bits == column.cells for column in columns),
        "cells of identical bits": f"{sum(column.same_bits for column in columns) / max(cells, 1):.4%}",
        "within 1e-5, none exempt": sum(column.good and not column.exempt for column in columns),
        "with exempt cells": sum(column.exempt > 0 for column in columns),
        "exempt cells that differ": f"{sum(column.exempt for column in columns) / max(cells, 1):.4%}",
        "refused by stock Qlib": sum(len(row["refused"]) for row in rows),
        "failures": len(bad),
        "seconds of stock Qlib": round(sum(row["seconds_stock"] for row in rows), 1),
        "seconds of ours": round(sum(row["seconds_ours"] for row in rows), 1),
    }
    lines = [f"{name:28s} {value}" for name, value in figures.items()]
    lines += [f"DIFFERS {c.text}: {c.pattern} in pattern, {c.apart} apart, of {c.cells}: {c.worst}" for c in bad]
    return "\n".join(lines)


def _rows_of(path: Path, key: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [row for row in rows if all(row[name] == value for name, value in key.items())]


def _batches(arguments: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Yield formulas by name of the batch, the same for the same seed."""
    if arguments.alphas:
        for source in (Alpha158DL, Alpha360DL):
            texts = list(dict.fromkeys(source.get_feature_config()[0]))
            if arguments.market != "embedded":  # no such field there
                texts = [text.replace("$vwap", "$open") for text in texts]
            for start in range(0, len(texts), 100):
                yield f"{source.__name__} {start}", texts[start : start + 100]
    odd = arguments.market == "odd"
    complete, partial = (odd_market.COMPLETE, odd_market.PARTIAL) if odd else (BARS, ())
    draw = random.Random(arguments.seed)
    texts, known = [], set()
    while len(texts) < arguments.expressions:
        text = formula(draw.choice, complete, partial, draw.choice((4, 3, 2)), INDEX if odd else "")
        if text not in known:
            known.add(text)
            texts.append(text)
    for start in range(0, len(texts), BATCH):
        yield f"{start}", texts[start : start + BATCH]


def _open(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Start Qlib on the market and return codes with their dates of membership."""
    root = arguments.provider
    if arguments.market == "odd" and not (root / "calendars").is_dir():
        odd_market.write_odd_market(root)
    if arguments.until is not None:
        root = _cut(root, scratch, UNIVERSE[arguments.market], np.datetime64(arguments.until))
    warnings.simplefilter("ignore")
    qlib.init(provider_uri=str(root), region="cn", kernels=1, custom_ops=list(OPERATORS), logging_level=logging.ERROR)
    members = D.list_instruments(D.instruments(UNIVERSE[arguments.market]))
    return {code: members[code] for code in sorted(members)[:: arguments.every]}


def _cut(root: Path, out: Path, market: str, until: np.datetime64) -> Path:
    """Copy the bars of a market up to a day: neither side may as much as read a later one."""
    days = read_calendar(root)
    days = days[days <= until]
    spans = [(code, first, min(last, days[-1])) for code, first, last in read_instruments(root, market)]
    spans = [span for span in spans if span[1] <= span[2]]
    write_calendar(out, days)
    write_instruments(out, market, spans)
    for code in sorted({code for code, _, _ in spans} | {INDEX}):
        for path in feature_path(root, code, "close").parent.glob("*.day.bin"):
            field = path.name.split(".")[0]
            start, values = read_feature(root, code, field)
            if start < len(days):
                write_feature(out, code, field, start, values[: len(days) - start])
    return out


def _run(universe: Mapping[str, Any], texts: list[str]) -> dict[str, Any]:
    began = time.perf_counter()
    refused: list[str] = []
    try:
        stock = LocalDatasetProvider().dataset(dict(universe), texts)
    except (ValueError, TypeError, IndexError):
        texts, refused = _possible(universe, texts)
        began = time.perf_counter()
        stock = LocalDatasetProvider().dataset(dict(universe), texts)
    seconds = time.perf_counter() - began
    provider = PanelDatasetProvider()
    began = time.perf_counter()
    ours = provider.dataset(dict(universe), texts)
    seconds_ours = time.perf_counter() - began
    return {
        "columns": [asdict(column) for column in compare(stock, ours)],
        "refused": refused,
        "seconds_stock": round(seconds, 3),
        "seconds_ours": round(seconds_ours, 3),
    }


def _possible(universe: Mapping[str, Any], texts: list[str]) -> tuple[list[str], list[str]]:
    """Return the formulas that stock Qlib computes on this market, and the others."""
    possible, refused = [], []
    for text in texts:
        try:
            LocalDatasetProvider().dataset(dict(universe), [text])
            possible.append(text)
        except (ValueError, TypeError, IndexError):
            refused.append(text)
    return possible, refused


def _column(fields: Mapping[str, Any]) -> Column:
    return Column(**fields)


def _line(name: str, row: Mapping[str, Any]) -> str:
    columns = [_column(each) for each in row["columns"]]
    bad = sum(not column.good for column in columns)
    return f"batch {name}: {len(columns)} expressions, {bad} differ, stock {row['seconds_stock']} s"


if __name__ == "__main__":
    sys.exit(main())
