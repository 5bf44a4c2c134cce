"""The proof's own arithmetic, and that it resumes; its figures are in docs/gating.md."""

import importlib.util
import json
from pathlib import Path

import pytest

PROOF = Path(__file__).parents[2] / "benchmarks" / "proofs" / "gate_gain.py"


@pytest.fixture(scope="module")
def proof():
    spec = importlib.util.spec_from_file_location("gate_gain", PROOF)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(seed, **changes):
    shared = {"kind": "noise", "seed": seed, "days": 100, "gain": 0.002, "standard_error": 0.001, "kl": "0.1"}
    return shared | {"equal_ic": 0.01, "static_ic": 0.02, "p_value": 0.5, "p_value_chosen": 1.0} | changes


def test_seeds_are_pooled_by_their_days_and_standard_errors(proof):
    # Sums of gain 0.2 and -0.3 over 400 days; errors of the sums 0.1 and 0.3.
    rows = [row(1), row(2, days=300, gain=-0.001, p_value=0.01, kl="inf")]
    text = proof.summary(rows)
    assert "400 test days" in text
    assert f"{-0.1 / 400:+.5f}, pooled HAC t = {-0.1 / 0.1**0.5:.2f}; 1 seeds gain, 1 lose" in text.replace("\n", " ")
    assert "the prior itself on 1" in text
    assert "fixed finite penalty: 1 of 2" in text
    assert "penalty chosen on tune: 0 of 2" in text


def test_a_gate_that_is_always_its_prior_has_no_t(proof):
    assert "t = 0.00" in proof.summary([row(1, kind="planted", gain=0.0, standard_error=0.0)])


def test_seeds_that_are_done_are_not_run_again(proof, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    out.write_text("".join(json.dumps(row(seed)) + "\n" for seed in (7, 8)))
    assert proof.main(["--kind", "noise", "--first-seed", "7", "--seeds", "2", "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 2
    assert "2 noise markets" in capsys.readouterr().out


@pytest.mark.slow
def test_a_development_seed_runs_through(proof, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert (
        proof.main(["--kind", "noise", "--first-seed", "7", "--seeds", "1", "--permutations", "2", "--out", str(out)])
        == 0
    )
    (done,) = proof.read_rows(out)
    assert done["days"] > 400
    assert 0 < done["p_value"] <= 1
