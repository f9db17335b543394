"""What is pushed to the cache's own registry: names, identities, ranges and manifests that nobody sends by mistake."""

import json

from mitm_cache.oci.manifest import MAX_SIZE, OCI_INDEX, OCI_MANIFEST
from tests.hostile.case import Case
from tests.hostile.cases.pushing import (
    CONTENT,
    DIGEST,
    NOTHING,
    UPLOADS,
    case,
    holds,
    image,
    kept,
    open_upload,
    push,
    said,
    tell,
)
from tests.hostile.scene import Scene


def upload(name: str, method: str, identity: str) -> Case:
    """An identity that no upload has."""
    body = CONTENT if method in ("PATCH", "PUT") else b""
    target = f"{UPLOADS}{identity}" + (f"?digest={DIGEST}" if method == "PUT" else "")
    return said(f"{method} of an upload {name}", push(target, body=body, method=method), (400, 404), method)


def ranged(name: str, value: str) -> Case:
    """A Content-Range that is not where the upload goes on."""

    def run(scene: Scene) -> None:
        place = open_upload(scene)
        lines = ("Content-Length: 3", f"Content-Range: {value}")
        answer = tell(scene, push(place, *lines, body=CONTENT, method="PATCH"))
        assert (answer.status, answer.headers["range"]) == (416, "0-0"), answer
        assert tell(scene, push(place, method="DELETE")).status == 204

    return Case(f"Content-Range {name}", "416, and the upload is as it was", run)


def document(name: str, body: bytes, statuses: tuple[int, ...] = (400,), kind: str = OCI_MANIFEST) -> Case:
    """Something that is put as a manifest."""

    def run(scene: Scene) -> None:
        lines = [f"Content-Length: {len(body)}", *([f"Content-Type: {kind}"] if kind else [])]
        answer = tell(scene, push("/v2/documents/manifests/1", *lines, body=body, method="PUT"))
        assert answer.status in statuses, (answer.status, answer.body)
        assert tell(scene, push("/v2/documents/manifests/1", method="GET"), method="GET").status == 404

    return Case(f"a manifest: {name}", f"{' or '.join(map(str, statuses))}, and the tag is not there", run)


def index(*digests: str) -> bytes:
    rows = [{"mediaType": OCI_MANIFEST, "digest": digest, "size": 3} for digest in digests]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows}).encode()


def _foreign_upload(scene: Scene) -> None:
    """Another repository's, also of one below it."""
    place = open_upload(scene, "one")
    identity = place.rpartition("/")[2]
    for name in ("two", "one/deeper", "on"):
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            target = f"/v2/{name}/blobs/uploads/{identity}?digest={DIGEST}"
            assert tell(scene, push(target, method=method), method=method).status == 404
    assert tell(scene, push(place, method="DELETE")).status == 204


def _first_digest(scene: Scene) -> None:
    answer = tell(scene, push(f"{UPLOADS}?digest=sha256:{NOTHING}&digest={DIGEST}", body=CONTENT))
    assert answer.status == 400
    assert not holds(scene, "digests")


def _tags_like_folders(scene: Scene) -> None:
    """They are tags like others: nothing of the repository, or of one below it, is overwritten."""
    for name in ("folders", "folders/any"):
        kept(scene, name, CONTENT)
        for tag in ("_digests", "_tags", "_deleted", "_referrers", "_pins", "any", "sha256-" + NOTHING):
            body = image(annotations={"tag": tag, "name": name})
            put = push(f"/v2/{name}/manifests/{tag}", body=body, method="PUT")
            assert tell(scene, put).status == 201
            got = tell(scene, push(f"/v2/{name}/manifests/{tag}", method="GET"), method="GET")
            assert (got.status, got.body) == (200, body)
    assert holds(scene, "folders")
    tags = json.loads(tell(scene, push("/v2/folders/tags/list", method="GET"), method="GET").body)["tags"]
    assert len(tags) == 7


NAMES = {
    "_digests": "_digests", "_tags below a repository": "app/_tags", "_digests below a repository": "app/_digests/a",
    "_deleted below a repository": "app/_deleted", "..": "..", ".. within": "app/../closed/app",
    ".. at the end": "app/..", ". within": "app/./x", "encoded ..": "%2e%2e", "an encoded slash": "app%2f..%2fclosed",
    "an encoded slash twice": "app%252fx", "a NUL": "app%00", "upper case": "App", "two slashes": "app//x",
    "a slash before it": "/app", "of 256 characters": "a" * 256, "of 100 parts and a dot": "a/" * 100 + ".",
    "a tilde": "app~", "a backslash": "app%5c..%5cclosed", "a dot before it": ".app", "a colon": "app:1",
}  # fmt: skip
TAGS = {
    "..": "..", "a draft's": ".any.1-1", "a slash": "a/b", "of 129 characters": "a" * 129, "a NUL": "a%00",
    "a percent sign": "%", "an encoded ..": "%2e%2e", "a digest of letters": "sha256:zz",
    "a digest that climbs": "sha256:../../x", "a dash before it": "-1", "a line break": "a%0ab",
}  # fmt: skip
DIGESTS = {
    "that climbs": "sha256:../../../../x", "of MD5": "md5:900150983cd24fb0d6963f7d28e17f72",
    "in upper case": DIGEST.upper(), "that is empty": "sha256:", "with a line break": f"{DIGEST}%0a",
    "with a NUL": f"{DIGEST}%00", "of SHA-512 and too short": f"sha512:{NOTHING}", "of an unknown kind": "x:1",
    "without a kind": NOTHING, "with a dash": DIGEST.replace(":", "-"), "twice encoded": "sha256%253a" + NOTHING,
}  # fmt: skip
IDENTITIES = {
    "that climbs": "../../links/local/app", "that climbs, encoded": "..%2f..%2fFORMAT", "of zeros": "0" * 48,
    "in upper case": "A" * 48, "too short": "0" * 47, "too long": "0" * 49, "of a draft": "m-" + "0" * 32,
    "with a NUL": "0" * 47 + "%00", "with a slash behind it": "0" * 48 + "/", "of no name": "",
}  # fmt: skip
RANGES = {
    "behind the end": "5-7", "backwards": "2-0", "negative": "-3-0", "of words": "all", "too long": "0-9",
    "of 40 digits": "0-" + "9" * 40, "in other units": "lines 0-2", "in full-width digits": "\xef\xbc\x90-2",
}  # fmt: skip
METHODS = {
    "POST of a manifest": ("POST", "/v2/app/manifests/1"), "PATCH of a manifest": ("PATCH", "/v2/app/manifests/1"),
    "PUT of a blob": ("PUT", f"/v2/app/blobs/{DIGEST}"), "POST of a blob": ("POST", f"/v2/app/blobs/{DIGEST}"),
    "DELETE of the registry": ("DELETE", "/v2/"), "DELETE of the catalog": ("DELETE", "/v2/_catalog"),
    "DELETE of the tags": ("DELETE", "/v2/app/tags/list"), "PUT of referrers": ("PUT", f"/v2/app/referrers/{DIGEST}"),
    "OPTIONS": ("OPTIONS", "/v2/app/manifests/1"), "an unknown method": ("COPY", "/v2/app/manifests/1"),
    "POST of something else": ("POST", "/admin"),
}  # fmt: skip
DOCUMENTS = {
    "no JSON": b"{",
    "a list": b"[]",
    "null": b"null",
    "empty": b"",
    "NULs": bytes(1000),
    "UTF-16": image().decode().encode("utf-16"),
    "nested 100,000 deep": b"[" * 100_000,
    "nested in objects": b'{"a":' * 100_000,
    "nested within its annotations": image()[:-1] + b',"annotations":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "a number of 50,000 digits": image()[:-1] + b',"n":' + b"9" * 50_000 + b"}",
    "no config": image(config=None),
    "a config of text": image(config="x"),
    "layers that are an object": image(layers={"a": 1}),
    "a layer without a digest": image(layers=[{"size": 1}]),
    "a layer whose digest climbs": image(layers=[{"digest": "sha256:../../x"}]),
    "a layer whose digest is a list": image(layers=[{"digest": [DIGEST]}]),
    "a layer that is null": image(layers=[None]),
    "a subject that climbs": image(subject={"digest": "sha256:../../x"}),
    "a subject of text": image(subject="x"),
    "an image and an index": image(manifests=[]),
    "a type that is a list": image(mediaType=[OCI_MANIFEST]),
    "a type with half of a surrogate": image(mediaType="\ud800"),
    "another schema": image(schemaVersion=1),
    "a schema that is true": image(schemaVersion=True),
    "another type than it says": image(mediaType=OCI_INDEX),
}

CASES: tuple[Case, ...] = (
    *(said(f"a repository named {name}", push(f"/v2/{value}/blobs/uploads/"), (400,)) for name, value in NAMES.items()),
    *(
        said(f"a tag named {name}", push(f"/v2/app/manifests/{value}", body=image(), method="PUT"), (400, 405))
        for name, value in TAGS.items()
    ),
    case("tags named like folders of the cache's", "tags like others", _tags_like_folders),
    *(
        said(f"a digest {name}", push(f"{UPLOADS}?digest={value}", body=CONTENT), (400,))
        for name, value in DIGESTS.items()
    ),
    *(said(f"a mount {name}", push(f"{UPLOADS}?mount={value}&from=app"), (400,)) for name, value in DIGESTS.items()),
    case("?digest= twice", "the first one counts", _first_digest),
    *(
        upload(name, method, value)
        for name, value in IDENTITIES.items()
        for method in ("GET", "PATCH", "PUT", "DELETE")
    ),
    case("an upload of another repository", "404, and it stays", _foreign_upload),
    *(ranged(name, value) for name, value in RANGES.items()),
    *(said(name, push(target, method=method), (404, 405)) for name, (method, target) in METHODS.items()),
    *(document(name, body) for name, body in DOCUMENTS.items()),
    document("of 4 MiB and a byte", bytes(MAX_SIZE + 1), (413,)),
    document("4 MiB of empty lists", b"[" + b"[]," * (MAX_SIZE // 3 - 1) + b"0]"),
    document("of a type of 50 kB", image(), (400, 431), kind="x/" + "y" * 50_000),
    document(
        "an index of 20,000 that are not here", index(f"sha256:{NOTHING}", *[DIGEST] * 20_000), (404,), kind=OCI_INDEX
    ),
    document("an index that lists layers", index(DIGEST), (404,), kind=OCI_INDEX),
    said("a list of -1 tags", push("/v2/app/tags/list?n=-1", method="GET"), (400,), "GET"),
    said("a list of 10^20 repositories", push(f"/v2/_catalog?n={10**20}", method="GET"), (400,), "GET"),
    said("referrers of what climbs", push("/v2/app/referrers/sha256:..", method="GET"), (400,), "GET"),
    said("referrers behind what climbs", push(f"/v2/app/referrers/{DIGEST}?last=../..", method="GET"), (400,), "GET"),
)
