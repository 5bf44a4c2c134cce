"""What changes when a workflow's data comes from the panel provider: time, features, predictions.

Runs the dataset and the model of a workflow twice, each in a process of its own: with Qlib's provider and with
``PanelDatasetProvider``. Prints how long each took to load the data, in how many cells the features differ and where
most, and how far the predictions are apart.

    python benchmarks/provider_swap.py --provider .data/embedded
    python benchmarks/provider_swap.py workflows/csi300_alpha158.yaml --provider DIR --kernels 2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from jinja2 import Template

PANEL = {"class": "PanelDatasetProvider", "module_path": "qlib_llm_alpha.data.provider"}


def main() -> int:
    """Run both and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", nargs="?", default="workflows/drop_in_alpha158.yaml")
    parser.add_argument("--provider", required=True, help="folder of the Qlib provider")
    parser.add_argument("--kernels", type=int, default=2, help="processes of Qlib's own provider (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="times each side loads; medians are printed")
    parser.add_argument("--side", choices=("stock", "panel"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        _run_side(args)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        seconds: dict[str, list[float]] = {"stock": [], "panel": []}
        # In turns, so that other work on the machine slows both.
        for repeat in range(args.repeats):
            for side in seconds:
                command = [sys.executable, __file__, args.workflow, "--provider", args.provider, "--side", side]
                out = folder / f"{side}{repeat}"
                subprocess.run([*command, "--kernels", str(args.kernels), "--out", str(out)], check=True)  # noqa: S603
                seconds[side].append(json.loads((out / "seconds.json").read_text()))
        print(_report(folder, seconds))
    return 0


def _run_side(args: argparse.Namespace) -> None:
    import qlib
    from qlib.utils import init_instance_by_config

    os.environ["QLIB_DATA"] = args.provider
    task = yaml.safe_load(Template(Path(args.workflow).read_text()).render(**os.environ))
    settings: dict[str, Any] = {"provider_uri": args.provider, "region": "cn", "kernels": args.kernels}
    settings["custom_ops"] = task["qlib_init"].get("custom_ops", [])
    if args.side == "panel":
        settings["dataset_provider"] = PANEL
    qlib.init(**settings)
    if args.side == "panel":
        from qlib_llm_alpha.engine.warmup import warm_up

        warm_up()  # compiling and loading kernels, once for a process, is not part of the data stage
    begun = time.perf_counter()
    dataset = init_instance_by_config(task["task"]["dataset"])
    seconds = time.perf_counter() - begun
    args.out.mkdir()
    (args.out / "seconds.json").write_text(json.dumps(seconds))
    dataset.handler._data["feature"].to_pickle(args.out / "features.pkl")
    model = init_instance_by_config(task["task"]["model"])
    # Qlib's model logs to a recorder that this comparison does not need.
    from qlib.workflow import R

    store = f"sqlite:///{args.out / 'mlflow.db'}"
    with R.uri_context(store), R.start(experiment_name="provider_swap"):
        model.fit(dataset)
    model.predict(dataset).rename("score").to_pickle(args.out / "scores.pkl")
    label = dataset.prepare("test", col_set="label", data_key="raw").iloc[:, 0]
    label.rename("label").to_pickle(args.out / "label.pkl")


def _report(folder: Path, seconds: dict[str, list[float]]) -> str:
    stock, panel = (pd.read_pickle(folder / f"{side}0" / "features.pkl") for side in ("stock", "panel"))  # noqa: S301
    if not stock.index.equals(panel.index) or list(stock.columns) != list(panel.columns):
        raise SystemExit("index or columns differ: the frames cannot be compared")
    medians = {side: float(np.median(times)) for side, times in seconds.items()}
    lines = [
        f"data stage: stock {medians['stock']:.2f} s, panel {medians['panel']:.2f} s, "
        f"ratio {medians['stock'] / medians['panel']:.1f}",
        f"cells: {stock.size:,}",
    ]
    rows = []
    for name in stock.columns:
        theirs, ours = stock[name].to_numpy(), panel[name].to_numpy()
        pattern = np.isnan(theirs) != np.isnan(ours)
        both = np.isfinite(theirs) & np.isfinite(ours)
        gap = np.abs(theirs[both].astype(float) - ours[both])
        scale = np.abs(theirs[both]) + 1e-3 * np.nanstd(theirs[np.isfinite(theirs)].astype(float)) + 1e-30
        bits = (theirs.view(np.uint32) != ours.view(np.uint32)) & ~(np.isnan(theirs) & np.isnan(ours))
        rows.append((name, int(bits.sum()), int((gap / scale > 1e-5).sum()), int(pattern.sum()), gap.max(initial=0.0)))
    table = pd.DataFrame(rows, columns=["factor", "other bits", "beyond 1e-5", "other NaN", "largest gap"])
    identical = int((table["other bits"] == 0).sum())
    lines.append(
        f"features: {identical} of {len(table)} bit-identical; cells with other bits {table['other bits'].sum():,}, "
        f"beyond 1e-5 of the scale {table['beyond 1e-5'].sum():,}, NaN on one side {table['other NaN'].sum():,}"
    )
    differing = table[table["other bits"] > 0].sort_values(["beyond 1e-5", "other bits"], ascending=False)
    lines.append(differing.to_string(index=False) if len(differing) else "no cell differs")
    scores = [pd.read_pickle(folder / f"{side}0" / "scores.pkl") for side in ("stock", "panel")]  # noqa: S301
    label = pd.read_pickle(folder / "stock0" / "label.pkl")  # noqa: S301
    both = pd.concat([scores[0].rename("stock"), scores[1].rename("panel"), label], axis=1)
    days = both.groupby(level="datetime")
    correlation = days.apply(lambda day: day["stock"].corr(day["panel"]))
    ic = {side: days.apply(lambda day, side=side: day[side].corr(day["label"])).mean() for side in ("stock", "panel")}
    lines.append(
        f"predictions: bit-identical {bool((both['stock'] == both['panel']).all())}; correlation of a day's scores "
        f"mean {correlation.mean():.6f}, lowest {correlation.min():.6f}; IC stock {ic['stock']:.5f}, "
        f"panel {ic['panel']:.5f}, difference {ic['panel'] - ic['stock']:+.5f}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
