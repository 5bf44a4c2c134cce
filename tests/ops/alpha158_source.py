"""Where ``library/sets/alpha158.yaml`` comes from: Qlib's own definition, and our category of each family.

Write the file anew with ``python -m tests.ops.alpha158_source``; a test holds it equal to what Qlib defines today.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from qlib.contrib.data.loader import Alpha158DL

import qlib_llm_alpha.library

PATH = Path(qlib_llm_alpha.library.__path__[0]) / "sets" / "alpha158.yaml"

HEADER = """\
# The 158 features of Qlib's Alpha158, formulas and order as Alpha158DL.get_feature_config() gives them.
# The categories are ours. Written by `python -m tests.ops.alpha158_source`; do not edit by hand.
"""

CATEGORY_OF_FAMILY = {
    "momentum": "ROC BETA CNTP CNTN CNTD SUMP SUMN SUMD",
    "mean_reversion": "MA RESI MAX MIN QTLU QTLD RANK",
    "volatility": "STD WVMA",
    "liquidity": "VMA VSTD VSUMP VSUMN VSUMD CORR CORD",
    "technical": "KMID KLEN KUP KLOW KSFT OPEN HIGH LOW VWAP RSQR RSV IMAX IMIN IMXD",
}


def alpha158_yaml() -> str:
    """Return the text of the set file as it should be for the installed Qlib."""
    categories = {family: name for name, families in CATEGORY_OF_FAMILY.items() for family in families.split()}
    expressions, names = Alpha158DL.get_feature_config()
    factors = [
        {"name": name, "expression": expression, "category": categories[re.sub(r"\d+$", "", name)]}
        for expression, name in zip(expressions, names, strict=True)
    ]
    document = {"name": "alpha158", "warmup": "qlib", "factors": factors}
    return HEADER + yaml.safe_dump(document, sort_keys=False, width=1000)


if __name__ == "__main__":
    PATH.write_text(alpha158_yaml(), encoding="utf-8")
