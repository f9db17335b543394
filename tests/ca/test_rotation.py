"""The change from one CA to the next: no node fails on the way, and it can be undone until it is finished."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mitm_cache.ca import CA_LIFETIME, CertificateAuthority, rotation
from mitm_cache.ca.rotation import Pair
from mitm_cache.errors import ConfigError
from tests.ca.verifiers import Verify, each_verifier, force

NOW = datetime.now(UTC).replace(microsecond=0)
PERMITTED = ("quay.io", "localhost")
LATER = NOW + timedelta(days=10)


@pytest.fixture
def old(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path / "ca", permitted=PERMITTED, now=NOW)


def begin(old: CertificateAuthority, at: datetime | None = None) -> CertificateAuthority:
    following = rotation.begin(old.directory, permitted=PERMITTED, now=NOW, at=at).following
    assert following is not None
    return following


class TestNodes:
    @each_verifier
    def test_overlap(self, old: CertificateAuthority, tmp_path: Path, verify: Verify) -> None:
        """Who trusts both is served before and after the change, who trusts one of them by that one only."""
        trust = {name: tmp_path / f"{name}.crt" for name in ("old", "new", "both")}
        new = begin(old)
        trust["old"].write_bytes(old.export())
        trust["new"].write_bytes(new.export())
        trust["both"].write_bytes(Pair.load(old.directory).export(NOW))
        leaf = Pair.load(old.directory).signer(NOW).mint("localhost", now=NOW)
        believed = {name for name, file in trust.items() if not verify(file, leaf, tmp_path)}
        assert believed == {"old", "both"}
        rotation.finish(old.directory, permitted=PERMITTED, now=NOW)
        leaf = Pair.load(old.directory).signer(NOW).mint("localhost", now=NOW)
        believed = {name for name, file in trust.items() if not verify(file, leaf, tmp_path)}
        assert believed == {"new", "both"}

    @each_verifier
    def test_stolen_key(self, tmp_path: Path, verify: Verify) -> None:
        """The new CA is as constrained as the old one: a leaf that is forced out of it for another name is refused."""
        old = CertificateAuthority.create(tmp_path / "ca", permitted=["quay.io"], now=NOW)
        following = rotation.begin(old.directory, permitted=["quay.io"], now=NOW).following
        assert following is not None
        trusted = tmp_path / "both.crt"
        trusted.write_bytes(Pair.load(old.directory).export(NOW))
        for each in (old, following):
            assert verify(trusted, force(each.key_path, each.export(), b"", "localhost"), tmp_path)


class TestSigner:
    def test_until_finished(self, old: CertificateAuthority) -> None:
        """The old CA signs until the rotation is finished; what nodes are to trust begins with the one that signs."""
        new = begin(old)
        pair = Pair.load(old.directory)
        assert pair.signer(NOW + timedelta(days=1000)).fingerprint == old.fingerprint
        assert pair.export(NOW) == old.export() + new.export()
        finished = rotation.finish(old.directory, permitted=PERMITTED, now=NOW)
        assert finished.fingerprint == new.fingerprint
        assert Pair.load(old.directory).export(NOW) == new.export()

    def test_date(self, old: CertificateAuthority) -> None:
        """With a date the new one signs from then on, without a command; the old one stays trusted until the finish."""
        new = begin(old, LATER)
        pair = Pair.load(old.directory)
        assert pair.signer(LATER - timedelta(seconds=1)).fingerprint == old.fingerprint
        assert pair.signer(LATER).fingerprint == new.fingerprint
        assert list(pair.by_role(NOW)) == ["signing", "next"]
        assert list(pair.by_role(LATER)) == ["signing", "previous"]
        assert pair.export(LATER) == new.export() + old.export()

    @pytest.mark.parametrize("at", [NOW, NOW - timedelta(days=1), NOW + CA_LIFETIME], ids=["now", "past", "too late"])
    def test_no_date(self, old: CertificateAuthority, at: datetime) -> None:
        """A date that is no help is refused, and nothing is made."""
        with pytest.raises(ConfigError, match="between now and"):
            begin(old, at)
        assert Pair.load(old.directory).following is None

    def test_broken_date(self, old: CertificateAuthority) -> None:
        """A date that cannot be read stops the start, by its file."""
        begin(old, LATER)
        (old.directory / "next.date").write_text("soon")
        with pytest.raises(ConfigError, match=r"next\.date holds 'soon'"):
            Pair.load(old.directory)


class TestEnds:
    def test_finish(self, old: CertificateAuthority) -> None:
        """The old pair is kept under names that end in the time, its key as secret as before; nothing else is left."""
        old_key = old.key_path.read_bytes()
        begin(old, LATER)
        rotation.finish(old.directory, permitted=PERMITTED, now=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC))
        end = "20300102T030405Z"
        names = {path.name for path in old.directory.iterdir()}
        assert names == {"ca.key", "ca.crt", "ca.lock", f"ca.key.{end}", f"ca.crt.{end}"}
        assert (old.directory / f"ca.key.{end}").read_bytes() == old_key
        assert (old.directory / f"ca.key.{end}").stat().st_mode & 0o777 == 0o600

    def test_abort(self, old: CertificateAuthority) -> None:
        """An undone rotation leaves nothing of the new CA, its key above all."""
        before = {path.name: path.read_bytes() for path in old.directory.iterdir()}
        begin(old, LATER)
        assert rotation.abort(old.directory).fingerprint == old.fingerprint
        assert {path.name: path.read_bytes() for path in old.directory.iterdir()} == before

    def test_cut_short(self, old: CertificateAuthority) -> None:
        """A finish that ended between its two renames is told of, and completed by doing it again."""
        new = begin(old)
        (old.directory / "next.key").rename(old.directory / "ca.key")
        with pytest.raises(ConfigError, match="'mitm-cache ca rotate --finish' completes it"):
            CertificateAuthority.ensure(old.directory, permitted=PERMITTED, now=NOW)
        with pytest.raises(ConfigError, match="'mitm-cache ca rotate --finish' completes it"):
            rotation.abort(old.directory)
        assert rotation.finish(old.directory, permitted=PERMITTED, now=NOW).fingerprint == new.fingerprint
        assert not list(old.directory.glob("next.*"))

    def test_finish_needs_what_is_configured(self, old: CertificateAuthority) -> None:
        """A registry that was configured since then is not lost by the finish: it is refused, and the old one stays."""
        begin(old)
        with pytest.raises(ConfigError, match=r"'ghcr\.io' is outside"):
            rotation.finish(old.directory, permitted=[*PERMITTED, "ghcr.io"], now=NOW)
        assert CertificateAuthority.load(old.directory).fingerprint == old.fingerprint

    def test_nothing_to_end(self, old: CertificateAuthority) -> None:
        """Without a rotation there is nothing to finish or to undo."""
        with pytest.raises(ConfigError, match="no rotation is under way"):
            rotation.finish(old.directory, permitted=PERMITTED, now=NOW)
        with pytest.raises(ConfigError, match="no rotation is under way"):
            rotation.abort(old.directory)

    def test_one_at_a_time(self, old: CertificateAuthority) -> None:
        """A second rotation, and `init --force`, wait for the end of the first."""
        begin(old)
        with pytest.raises(ConfigError, match="a rotation is under way"):
            begin(old)
        with pytest.raises(ConfigError, match="a rotation is under way"):
            CertificateAuthority.create(old.directory, permitted=PERMITTED, now=NOW, force=True)

    def test_nothing_to_rotate(self, tmp_path: Path) -> None:
        """Without a CA the error names the command that makes one, and nothing is made."""
        with pytest.raises(ConfigError, match="mitm-cache ca init"):
            rotation.begin(tmp_path, permitted=PERMITTED, now=NOW)
        assert os.listdir(tmp_path) == []
