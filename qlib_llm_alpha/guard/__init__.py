"""Leak guards for any signal column, handler or model, ours or the user's."""
