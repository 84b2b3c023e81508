"""Copy images into a folder for each class, as a table with the columns `file` and `label` says."""

import csv
import shutil
from pathlib import Path

with open("labels.csv", newline="", encoding="utf-8") as table:
    for row in csv.DictReader(table):
        folder = Path("sorted", row["label"])
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path("images", row["file"]), folder)
