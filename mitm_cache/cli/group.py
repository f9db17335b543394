"""A group of commands, as its help shows them."""

import click

_SENTENCE = 300
"""Characters: longer than any command's first sentence."""


class Group(click.Group):
    """Tells what each command does by its whole first sentence, which click cuts at the line's end."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, on as many lines as it needs."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, self.commands[name].get_short_help_str(limit=_SENTENCE)) for name in self.list_commands(ctx)]
            )
