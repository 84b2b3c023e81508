"""What a run copies into its `models/` folder as it is: it works there on its own, without this package."""
