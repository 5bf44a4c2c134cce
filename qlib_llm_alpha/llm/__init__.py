"""One gateway to OpenAI-compatible models: journal, replay, budget, audit. No other room talks to a model."""
