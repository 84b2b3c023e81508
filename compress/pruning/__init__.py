"""Making networks smaller: which parts can go, what each is worth, what it costs, and taking it away."""
