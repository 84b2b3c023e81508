"""Searching for an architecture: which networks there are, what each costs, how good each is."""
