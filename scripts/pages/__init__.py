"""The pages that are made: measurements from the CSVs of ``scripts/bench``, options from their definitions."""
