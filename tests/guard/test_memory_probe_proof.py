"""The proof's own arithmetic, that it resumes, and a few of its seeds; its figures are in the documentation."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PROOFS = Path(__file__).parents[2] / "benchmarks" / "proofs"


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load the proof as its command line does, from its own folder."""
    monkeypatch.syspath_prepend(str(PROOFS))
    for name in ("resumable", "memory_probe"):
        spec = importlib.util.spec_from_file_location(name, PROOFS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, loaded)
        spec.loader.exec_module(loaded)
    return loaded


def row(seed: int, **changes: Any) -> dict[str, Any]:
    oracle = {"oracle_right": 20, "oracle_answered": 40, "oracle_p": 0.6, "oracle_accused": False}
    clairvoyant = {"clairvoyant_right": 40, "clairvoyant_p": 0.0001, "clairvoyant_found": True}
    return {"seed": seed, "questions": 40, "requests": 80, **oracle, **clairvoyant, "seconds": 0.5, **changes}


def test_accusations_are_pooled_with_their_interval(proof: ModuleType) -> None:
    rows = [row(seed) for seed in range(9)] + [row(9, oracle_accused=True, oracle_p=0.004)]
    text = proof.summary(rows)
    # Clopper and Pearson for 1 of 10, as in tables.
    assert "oracle accused in 1 of 10 runs, 95 percent interval 0.0025 to 0.4450; at most 0.05: NO" in text
    assert "clairvoyant found in 10 of 10 runs: yes" in text
    assert "at most 0.05: yes" in proof.summary(rows[:9])
    assert "found in 9 of 10 runs: NO" in proof.summary([*rows[:9], row(9, clairvoyant_found=False)])
    assert proof.summary([]) == "no runs"


def test_a_few_seeds_over_http_find_the_clairvoyant_and_leave_the_oracle_alone(
    proof: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    command = ["--first-seed", "1", "--seeds", "2", "--out", str(out)]
    assert proof.main(command) == 0
    assert "clairvoyant found in 2 of 2 runs: yes" in capsys.readouterr().out
    lines = out.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert proof.main(command) == 0
    assert out.read_text(encoding="utf-8").splitlines() == lines, "what is there is not asked again"
    assert "160 requests over HTTP" in capsys.readouterr().out
