"""Finished trainings -> statistics, tables, figures and the report page."""
