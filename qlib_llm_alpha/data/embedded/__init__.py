"""The embedded market: simulated A-share-like bars with weak, regime-dependent plants, deterministic for a seed."""
