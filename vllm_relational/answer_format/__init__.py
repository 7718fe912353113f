"""The form of an answer, read alike by every stage: JSON schemas, and thoughts before the answer."""
