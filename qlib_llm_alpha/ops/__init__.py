"""Custom operators for stock Qlib, registered through ``qlib_init.custom_ops``."""
