"""The command line."""

from study.cli.commands import main as main
