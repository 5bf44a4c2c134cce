"""Providers, sources, loaders and handlers: where market data meets Qlib."""
