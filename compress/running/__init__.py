"""A run: `runner`, its nets (`making`), its figures (`conclusion`), and what is tried before (`preflight`)."""
