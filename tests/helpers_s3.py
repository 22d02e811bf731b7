"""An object store of this machine: as much of S3 as is needed to write, list and read files.

moto has all of S3, but needs boto3, and the newest boto3 seldom fits the botocore that s3fs needs.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

PAGE = 30
"""Most names in one answer; S3 gives 1,000. A client asks again for the others."""


@contextmanager
def s3_server() -> Iterator[str]:
    """Give the address of a store without buckets, for the time of the block."""
    with _Server(("127.0.0.1", 0), _Request) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.lock = threading.Lock()
        self.buckets: dict[str, dict[str, tuple[bytes, float]]] = {}
        """By bucket and key, the content and the time when it was put."""


class _Request(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *values: Any) -> None:
        pass

    def _answer(self) -> None:
        address = urlsplit(self.path)
        bucket, _, key = unquote(address.path).lstrip("/").partition("/")
        asked = {n: v[0] for n, v in parse_qs(address.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            if bucket and self.command == "PUT" and not key:
                self.server.buckets[bucket] = {}
                self._send(200)
            elif bucket not in self.server.buckets:
                self._error(404, "NoSuchBucket")
            elif key and not set(asked) - {"x-id"} and not self._in_chunks():
                self._of_file(self.server.buckets[bucket], key, body)
            elif not key and self.command == "HEAD":
                self._send(200)
            elif not key and self.command == "GET" and asked.get("list-type") == "2":
                self._list(self.server.buckets[bucket], asked)
            elif not key and self.command == "POST" and "delete" in asked:
                for one in ElementTree.fromstring(body).iterfind(".//{*}Key"):
                    self.server.buckets[bucket].pop(one.text or "", None)
                self._send(200, b"<DeleteResult/>")
            else:
                self._error(501, "NotImplemented")

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = _answer

    def _in_chunks(self) -> bool:
        """Whether the content is sent in a way that is not understood here."""
        return "Content-Encoding" in self.headers or "Transfer-Encoding" in self.headers

    def _of_file(self, files: dict[str, tuple[bytes, float]], key: str, body: bytes) -> None:
        if self.command == "PUT":
            files[key] = body, datetime.now(timezone.utc).timestamp()
            self._send(200, ETag=_etag(body))
        elif self.command == "DELETE":
            files.pop(key, None)
            self._send(204)
        elif self.command not in ("GET", "HEAD"):
            self._error(501, "NotImplemented")
        elif key not in files:
            self._error(404, "NoSuchKey")
        else:
            content, when = files[key]
            facts = {"ETag": _etag(content), "Last-Modified": formatdate(when, usegmt=True)}
            asked = self.headers.get("Range")
            if not asked:
                self._send(200, content, **facts)
                return
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, len(content) - int(last))
            stop = min(int(last) + 1, len(content)) if first and last else len(content)
            if start >= len(content):
                self._error(416, "InvalidRange")
                return
            facts["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            self._send(206, content[start:stop], **facts)

    def _list(self, files: dict[str, tuple[bytes, float]], asked: dict[str, str]) -> None:
        """Name files, and folders where there is a delimiter, in the order of their names."""
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        after = asked.get("continuation-token", "")
        page = min(int(asked.get("max-keys", PAGE)), PAGE)
        found: dict[str, str] = {}
        for key in sorted(files):
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                name = prefix + rest[: rest.index(delimiter) + len(delimiter)]
                text = f"<CommonPrefixes><Prefix>{_shown(name)}</Prefix></CommonPrefixes>"
            else:
                name = key
                content, when = files[key]
                time = datetime.fromtimestamp(when, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
                text = (
                    f"<Contents><Key>{_shown(key)}</Key><LastModified>{time}</LastModified>"
                    f"<ETag>{escape(_etag(content))}</ETag><Size>{len(content)}</Size>"
                    "<StorageClass>STANDARD</StorageClass></Contents>"
                )
            if name > after:
                found[name] = text
        names = list(found)[:page]
        more = len(found) > page
        token = (
            f"<NextContinuationToken>{escape(names[-1])}</NextContinuationToken>" if more else ""
        )
        self._send(
            200,
            (
                '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                f"<EncodingType>url</EncodingType><KeyCount>{len(names)}</KeyCount>"
                f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}"
                f"{''.join(found[name] for name in names)}</ListBucketResult>"
            ).encode(),
        )

    def _error(self, status: int, code: str) -> None:
        self._send(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _send(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _shown(name: str) -> str:
    return escape(quote(name, safe="/"))
