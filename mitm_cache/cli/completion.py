"""`mitm-cache completion`: what a shell needs to complete this program's commands, options and images."""

import re

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

PROGRAM = "mitm-cache"
VARIABLE = "_MITM_CACHE_COMPLETE"


class _Bash(BashComplete):
    """bash takes a name apart at colons and at signs, and replaces only the last of these words: the names of images
    are put together again before, and what bash has kept is cut off after."""

    source_template = r"""%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} current kept type value
    local -a words
    read -ra words <<< "$line"
    if [[ $line == *[[:space:]] ]]; then words+=(""); fi
    current=${words[${#words[@]}-1]}
    kept=${current%%"${current##*[$COMP_WORDBREAKS]}"}
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${value#"$kept"}") ;;
        esac
    done < <(COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def source(self) -> str:
        # Without a look at the version of the bash that is first on the path: it may be another one that reads this.
        return self.source_template % self.source_vars()


_SHELLS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": ZshComplete, "fish": FishComplete}


@click.command()
@click.argument("shell", type=click.Choice(sorted(_SHELLS)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that has SHELL complete commands, options and the names of images that are cached.

    For bash: mitm-cache completion bash > /etc/bash_completion.d/mitm-cache
    """
    program = context.find_root().command
    script = _SHELLS[shell](program, {}, PROGRAM, VARIABLE).source()
    click.echo(re.sub(r"\n+\Z", "", script))
