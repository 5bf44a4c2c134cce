"""From a vendor's files to a Qlib provider.

``parquet`` and ``vendor_csv`` read; ``reading`` walks a source in batches that fit in memory; ``bars`` turns one
instrument's raw bars into provider fields; ``writing`` makes a provider, ``updating`` appends to one; ``codes`` and
``boards`` hold what the exchanges decided.
"""

from __future__ import annotations
