"""How many of the images in kept clusters of Tiny-ImageNet show animals?

    python experiments/cluster_animals.py DEFINITION.yaml      # in the project's folder

Among ImageNet's WordNet ids those of animals are all below that of the first thing, the abacus. The
labels of the source are read here alone: neither selection nor training sees them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import yaml

from uotft.analysis.statistics import interval
from uotft.core import storage
from uotft.core.records import Cell
from uotft.pipeline import readers
from uotft.pipeline.workspace import Workspace

FIRST_THING = "n02666196"


def main(definition_file: str) -> None:
    """Print the mean share over seeds for each row that reuses clusters, and that of the source."""
    definition = yaml.safe_load(Path(definition_file).read_text())
    ws, [target] = Workspace.find(), definition["targets"]
    images = readers.images(ws, ws.params.source)
    pool = ws.rows(ws.params.source, images, "train")
    folders = [ws.root / "tiny" / "train" / name for name in images.names]
    ids = [next(folder.iterdir()).name.partition("_")[0] for folder in folders]
    shows = (np.array(ids) < FIRST_THING)[images.labels[pool]]
    print(f"all of the source: {100 * shows.mean():.1f} %")
    for row in definition["rows"]:
        if row["strategy"] == "none":
            continue
        own = ws.with_changes([*definition["set"], *row["set"]])
        members = readers.source_bank(own).members
        shares = []
        for seed in range(int(definition["seeds"])):
            cell = own.cell("selections", Cell(target, row["strategy"], seed))
            kept = [c["row"] for c in storage.read_json(cell / "selection.json")["classes"]]
            shares.append(100 * float(shows[np.isin(members, kept)].mean()))
        print(f"{row['label']}: {interval(shares)} %")


if __name__ == "__main__":
    main(*sys.argv[1:])
