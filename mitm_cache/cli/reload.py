"""`mitm-cache reload`: have the service that runs take up another configuration."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mitm_cache.config import Config

TIMEOUT = 60.0
"""Seconds that the new workers may take to serve."""


@click.command()
@click.pass_obj
def reload(config_of: "Callable[[], Config]") -> None:
    """Have the service that runs read its configuration again.

    No connection is dropped: new workers serve by it, on the same sockets, and the old ones finish what they do. Where
    something is wrong with it this says so, and the service goes on as before. The service reads the file that it was
    started with; this command only has to know its data directory.
    """
    from mitm_cache.workers.control import NAME, ask

    folder = config_of().data_dir / "run"
    try:
        answer = ask(folder, "reload", seconds=TIMEOUT)
    except TimeoutError:
        raise click.ClickException(f"the service has not answered for {TIMEOUT:g} s; its log may say more") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise click.ClickException(f"no service answers at {folder / NAME}") from None
    except PermissionError:
        raise click.ClickException(f"{folder / NAME} is for root and the service's user only") from None
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{folder / NAME}: {error}") from None
    if not answer.get("ok"):
        raise click.ClickException(f"not reloaded, what was before stays: {answer.get('message')}")
    click.echo(answer.get("message"))
