"""An append-only log whose rows are chained by hashes; the trial ledger and the audit trail are made of it."""
