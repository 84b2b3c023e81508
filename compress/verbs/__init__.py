"""What the verbs of the command line do, beside `run`: one file each."""
