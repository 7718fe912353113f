"""Files of the user: each written whole or not at all, and told apart whatever its names."""
