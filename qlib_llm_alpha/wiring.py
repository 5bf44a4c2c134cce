"""Where the command line's requests meet the rooms; each function serves one command."""

from __future__ import annotations
