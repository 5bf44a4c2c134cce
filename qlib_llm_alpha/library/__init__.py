"""The factor library: seed factors, published sheets and frozen factor sets, kept as YAML in ``sets/``."""
