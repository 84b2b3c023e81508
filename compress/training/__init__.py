"""Training: what a stage calls (`train`), its steps and epochs (`loop`), all that changes (`state`), what is kept."""
