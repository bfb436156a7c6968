"""One function per DVC stage: read files, call a room, write files.

Nothing heavy is imported before a stage needs it. Training stages run in worker processes
(`uotft.launch` starts them) and report through ``log``; MLflow is never imported here.
"""

from uotft.stages.comparison import compare, compare_runs
from uotft.stages.data import (
    cluster_bank,
    embed,
    embed_belongs,
    embedded,
    own_units,
    prepare,
    units,
)
from uotft.stages.designs import (
    Column,
    bank_results,
    columns,
    literature,
    results,
    scale,
    targets,
    unmeasured,
    write_results,
)
from uotft.stages.fetching import fetch
from uotft.stages.forecasting import forecast, gradient_products, measured, ranked
from uotft.stages.overlap import overlap, overlap_lines, read_overlap
from uotft.stages.parts import export_source, write_subset
from uotft.stages.selecting import (
    draw,
    read_selection,
    select,
    select_banks,
    source_bank,
    source_part,
    target_bank,
)
from uotft.stages.shelf import listing, show, verify
from uotft.stages.starting import init, project
from uotft.stages.training import (
    BELONGS,
    cell_belongs,
    evaluate,
    finished,
    pretrain,
    pretrain_belongs,
    train,
    train_belongs,
)
from uotft.stages.using import export, predict, reader
from uotft.stages.versions import everything
from uotft.stages.workspace import Log, Progress, Workspace

__all__ = [
    "BELONGS",
    "Column",
    "Log",
    "Progress",
    "Workspace",
    "bank_results",
    "cell_belongs",
    "cluster_bank",
    "columns",
    "compare",
    "compare_runs",
    "draw",
    "embed",
    "embed_belongs",
    "embedded",
    "evaluate",
    "everything",
    "export",
    "export_source",
    "fetch",
    "finished",
    "forecast",
    "gradient_products",
    "init",
    "listing",
    "literature",
    "measured",
    "overlap",
    "overlap_lines",
    "own_units",
    "predict",
    "prepare",
    "pretrain",
    "pretrain_belongs",
    "project",
    "ranked",
    "read_overlap",
    "results",
    "scale",
    "read_selection",
    "reader",
    "select",
    "select_banks",
    "source_bank",
    "show",
    "source_part",
    "target_bank",
    "targets",
    "train",
    "train_belongs",
    "units",
    "unmeasured",
    "verify",
    "write_subset",
    "write_results",
]
