"""What comes before anything else of a service: sockets, the user, and workers that load the program meanwhile."""

import os

from mitm_cache.config import Config
from mitm_cache.errors import ConfigError
from mitm_cache.listening import Places, bind_places, close_others, inherited
from mitm_cache.parsing import Endpoint
from mitm_cache.workers.count import processors
from mitm_cache.workers.hand import Hand
from mitm_cache.workers.privileges import drop, find, give_folders

BACKLOG = 1024


def prepare(config: Config, user: str = "") -> tuple[Places, list[Hand]]:
    """Bind what is listened on, become `user` if one is named, and start the workers. Raises MitmCacheError."""
    whom = find(user) if user else None
    count = config.workers or processors()
    kept = inherited(os.environ, os.getpid())
    places = bind_places(config, count, kept)
    try:
        if whom is not None:
            give_folders(config, whom)
            drop(whom)
        # From here on connections wait, and another service at these ports is refused.
        listen(places)
        return places, [Hand() for _ in range(count)]
    except BaseException:
        close_others(places, {})
        raise


def listen(places: Places) -> None:
    """Have connections wait at what was bound. Raises ConfigError where another service has been quicker: to bind an
    address together with others is allowed until somebody listens there."""
    for place, sockets in places.items():
        for bound in sockets if not place.handed else ():
            try:
                bound.listen(BACKLOG)
            except OSError as error:
                endpoint = Endpoint(*bound.getsockname()[:2])
                raise ConfigError(
                    f"listen.{place.listener}: {endpoint} cannot be bound: {error.strerror}; name another one"
                ) from error
