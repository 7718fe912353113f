"""The optimiser: one rewrite a file. A rewrite never changes a result, only how many questions it takes."""
