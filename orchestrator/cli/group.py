"""Pure: the group that commands with commands of their own are."""

from __future__ import annotations

import click

SAME_COMMAND = {"ls": "list", "list": "ls"}
"""What a list is called elsewhere: both words work in every group that has one of them."""


class CommandGroup(click.Group):
    """A group that lists its commands with whole sentences, and takes `ls` for `list`."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name or by the other word for it."""
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, SAME_COMMAND.get(cmd_name, cmd_name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the first sentence of each command, however long; click cuts it at the end of a line."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _sentence(self.commands[name])) for name in self.list_commands(ctx)])


def _sentence(command: click.Command) -> str:
    return command.get_short_help_str(limit=1000)
