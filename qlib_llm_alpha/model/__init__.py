"""Qlib ``Model`` faces of experts and gates."""
