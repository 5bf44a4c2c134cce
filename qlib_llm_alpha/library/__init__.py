"""The factor library: seed factors, named sets, and frozen factor sets with content ids."""
