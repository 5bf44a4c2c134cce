"""Who takes part, by the name that ``--peers`` takes."""

from __future__ import annotations

from dataclasses import dataclass

OURS = "engine_peers.ours:Ours"
STOCK = "qlib-2"


@dataclass(frozen=True)
class Peer:
    """A competitor: its class, what it is called in the table, and how to get it."""

    title: str
    kind: str
    install: str
    ships_with_us: bool = False


PEERS = {
    STOCK: Peer("Qlib, kernels=2", "engine_peers.stock_qlib:TwoProcesses", "pyqlib", ships_with_us=True),
    "provider": Peer(
        "**ours** under `D.features`", "engine_peers.stock_qlib:OurProvider", "pyqlib", ships_with_us=True
    ),
    "qlib-1": Peer("Qlib, kernels=1", "engine_peers.stock_qlib:OneProcess", "pyqlib", ships_with_us=True),
    "kunquant": Peer("KunQuant", "engine_peers.kunquant:KunQuant", "KunQuant (and g++)"),
    "bottleneck": Peer(
        "numpy + bottleneck", "engine_peers.numpy_bottleneck:NumpyBottleneck", "bottleneck", ships_with_us=True
    ),
    "polars": Peer("polars", "engine_peers.polars_rolling:PolarsRolling", "polars"),
    "expr_codegen": Peer(
        "expr_codegen + polars_ta", "engine_peers.expr_codegen_polars:ExprCodegen", "expr_codegen polars_ta"
    ),
}
