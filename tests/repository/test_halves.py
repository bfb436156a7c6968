"""`make test` leaves out what is marked slow; the rest still has every fault and every command."""

from __future__ import annotations

import ast

import pytest

from support.repository import REPOSITORY, files
from uotft.cli.app import app

FAULTS = range(1, 27)

#: {command: a test that starts it as a user does}; DVC starts those of the pipeline.
STARTED = {
    **dict.fromkeys(
        ("prepare", "pretrain", "embed", "units", "select", "forecast", "train", "evaluate"),
        "e2e/test_pipeline.py::test_one_finished_run_a_cell",
    ),
    "bank fetch": "e2e/test_bank.py::test_a_bank_is_fetched_checked_and_shown",
    "bank make": "e2e/test_bank.py::test_class_means_are_those_of_the_network",
    "bank show": "e2e/test_bank.py::test_show",
    "compare": "e2e/test_pipeline.py::test_the_runs_alone_make_the_same_table",
    "data accept": "data/test_class_images.py::test_nothing_is_fetched_before_terms_are_accepted",
    "data export": "e2e/test_subsets.py::test_a_subset_is_listed_and_exported",
    "data fetch": "pipeline/test_source_classes.py::test_the_command_lists_what_is_kept",
    "data keep": "pipeline/test_shard_banks.py::test_the_commands",
    "data list": "cli/test_listings.py::test_data_sets_and_experiments_are_listed",
    "data overlap": "data/test_checks.py::test_the_command_lists_near_copies_of_one_set",
    "data prepare": "data/test_shard_downloads.py::test_the_command_and_what_list_and_verify_say",
    "data show": "pipeline/test_datasets.py::test_show",
    "data subset": "e2e/test_subsets.py::test_a_subset_is_listed_and_exported",
    "data verify": "pipeline/test_datasets.py::test_the_command_says_it_with_its_exit_code",
    "doctor": "e2e/test_ui.py::test_doctor",
    "experiment list": "cli/test_listings.py::test_data_sets_and_experiments_are_listed",
    "experiment run": "e2e/test_experiment.py::test_cells_at_once_and_one_that_fails",
    "experiment show": "cli/test_listings.py::test_data_sets_and_experiments_are_listed",
    "export": "e2e/test_predict_export.py::test_export_writes_a_file_that_answers_alike",
    "init": "faults/test_22_config_abuse.py::test_folders_with_hostile_names",
    "predict": "e2e/test_predict_export.py::test_predict_says_what_the_network_says",
    "register": "e2e/test_register.py::test_a_model_is_registered_once_and_predicts_anywhere",
    "search": "e2e/test_search.py::test_one_trial_of_the_settings_as_they_are",
    "sync": "tracking/test_store.py::test_a_database_that_is_none_is_said_and_stops_no_run",
    "ui": "e2e/test_ui.py::test_the_page_is_there_when_it_is_said_and_ctrl_c_ends_it_all",
}


def quick(name: str) -> set[str]:
    """The tests of a file below tests/ that have no mark `slow`."""
    tree = ast.parse((REPOSITORY / "tests" / name).read_text(encoding="utf-8"))
    marks = [
        ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    if "pytest.mark.slow" in "".join(marks):
        return set()
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if "pytest.mark.slow" not in map(ast.unparse, node.decorator_list)
    }


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_a_quick_test(fault: int) -> None:
    [name] = [f for f in files() if f.startswith(f"tests/faults/test_{fault:02}_")]
    assert quick(name.removeprefix("tests/"))


def test_every_command_is_started_by_a_quick_test() -> None:
    commands = {c.callback.__name__ for c in app.registered_commands if c.callback}
    for group in app.registered_groups:
        inside = group.typer_instance.registered_commands if group.typer_instance else []
        commands |= {f"{group.name} {c.name or c.callback.__name__}" for c in inside if c.callback}
    assert set(STARTED) == commands
    for command, test in STARTED.items():
        name, _, function = test.partition("::")
        assert function in quick(name), f"{command}: {test}"
        text = (REPOSITORY / "tests" / name).read_text(encoding="utf-8")
        assert "test_pipeline" in test or command.split()[-1] in text, f"{command}: {test}"
