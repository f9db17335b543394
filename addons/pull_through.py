"""Answer pulls from the cache, or from upstream and keep them: `mitmdump -s pull_through.py`.

This is `mitm_cache.pull_through.PullThrough` behind the HTTP, and before the delivery, of `mitm-cache serve`.
"""

from mitm_cache.core import Core
from mitm_cache.embed import Answering
from mitm_cache.pull_through import PullThrough


class Pulls(Answering):
    """The job of this script; with follow_redirects in the same mitmdump it is this one that answers."""

    name = "pull_through"

    def answers(self, core: Core) -> PullThrough:
        """The cache."""
        return core.pull_through


addons = [Pulls()]
