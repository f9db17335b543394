"""`mitm-cache why`: what would happen to a pull, and by which rule."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mitm_cache.cli.data import complete_image
from mitm_cache.errors import ClientError, ConfigError, StoreError
from mitm_cache.units import size

if TYPE_CHECKING:
    from mitm_cache.config import Config
    from mitm_cache.explanation import Content, Explanation, Outcome, Part, Way

ASSUMED = "127.0.0.1"
UNKNOWN = 2
"""The exit status where nothing could be told."""


@click.command()
@click.argument("image", shell_complete=complete_image)
@click.option("--client", metavar="ADDRESS", help=f"The address of who pulls; {ASSUMED} is assumed.")
@click.option("--user", default="", metavar="NAME", help="A user of the users file; else a stranger.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def why(config_of: "Callable[[], Config]", image: str, client: str | None, user: str, as_json: bool) -> None:
    """Explain what a pull of IMAGE would get, and by which rule.

    The configuration and the data directory are read; upstream is not asked, and nothing is changed. The exit status
    is 0 where the image would be served as far as this cache decides, 1 where it would be refused, and 2 where that
    cannot be told.
    """
    from mitm_cache.explanation import explain
    from mitm_cache.oci.image import Image
    from mitm_cache.parsing import is_address

    try:
        wanted = Image.parse(image)
    except ClientError as error:
        raise click.BadParameter(error.message, param_hint="IMAGE") from None
    if client is not None and not is_address(client):
        raise click.BadParameter(f"{client!r} is not an IP address", param_hint="--client")
    try:
        explanation = explain(config_of(), wanted, client=client or ASSUMED, user=user)
    except (ConfigError, StoreError) as error:
        cure = "; run this as the service's user, or as root" if isinstance(error, StoreError) else ""
        click.echo(f"Error: {error.message}{cure}", err=True)
        sys.exit(UNKNOWN)
    if as_json:
        click.echo(json.dumps({**asdict(explanation), "client_assumed": client is None}, indent=2))
    else:
        rows = render(explanation, assumed=client is None)
        click.echo("\n".join(f"{label:<11} {words}".rstrip() for label, words in rows))
    sys.exit(0 if explanation.served else 1)


def render(explanation: "Explanation", *, assumed: bool) -> Iterator[tuple[str, str]]:
    """Rows of a label and its words."""
    yield "image", explanation.image
    if explanation.way is not None:
        yield from _way(explanation.way)
    yield "client", explanation.client + (" (assumed; --client names another)" if assumed else "")
    yield "user", explanation.user or "none (--user names one)"
    if explanation.policy is not None:
        label = "policy"
        for step in explanation.steps:
            yield label, f"{step.rule}: {f'{step.missed} does not match' if step.missed else 'matches'}"
            label = ""
        yield label, ", ".join(_outcome(explanation.policy))
        yield from _contents(explanation.contents)
    yield "verdict", f"{'served' if explanation.served else 'refused'}: {explanation.reason}"


def _way(way: "Way") -> Iterator[tuple[str, str]]:
    yield "registry", f"{way.registry} at {way.url}, {f'by the proxy {way.proxy}' if way.proxy else 'without a proxy'}"
    yield "rights", f"{way.rights}: {way.rights_mean}"
    yield "credential", way.credential or "none of the cache's own"


def _outcome(policy: "Outcome") -> Iterator[str]:
    from mitm_cache.explanation import span

    if not policy.allowed:
        yield "denied"
    else:
        yield "allowed" if policy.rule else "allowed, since no row matches"
        yield "may fill the cache" if policy.may_fill else "may not fill the cache"
    if policy.freeze:
        yield f"frozen at {policy.freeze}"
    if policy.min_age:
        yield f"a digest is served once it has been known for {span(policy.min_age)}"
    if policy.tag_ttl is not None:
        yield f"a tag is asked for again after {span(policy.tag_ttl)}"
    if policy.login_helps:
        yield "a user of the users file is better off"


def _contents(contents: "tuple[Content, ...]") -> Iterator[tuple[str, str]]:
    if not contents:
        yield "cached", "nothing is known of it"
    for content in contents:
        times = [f"known since {content.since}"] if content.since else []
        times += [f"last seen {content.asked}"] if content.asked else []
        times += [f"to be had from {content.ready}"] if content.ready else []
        yield "cached" if content.cached else "not cached", ", ".join((content.digest, *times))
        if content.size is not None:
            yield "", f"{content.media_type}, {size(content.size)}, last used {content.used}"
        if content.rights_mean:
            yield "", content.rights_mean
        for part in content.parts:
            yield "", _part(part, content)


def _part(part: "Part", content: "Content") -> str:
    name = part.platform or ("image" if part.digest == content.digest else part.digest[:19])
    if part.blobs is None or part.size is None or part.size_cached is None:
        return f"  {name}: its manifest is not cached"
    return f"  {name}: {part.blobs_cached} of {part.blobs} blobs, {size(part.size_cached)} of {size(part.size)}"
