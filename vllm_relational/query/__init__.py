"""A query from its table to its answers: the order of the stages, forecasts, audits, and what tells jobs apart."""
