"""The smuggling corpus: raw requests built from the grammar of RFC 9110 and 9112, bent one rule at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.router.rig import CHAT

LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HOST = b"Host: h\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(CHAT)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(CHAT), CHAT)


def names(text: str) -> list[str]:
    """Fields or targets, written one after the other."""
    return text.split()


@dataclass(frozen=True)
class Case:
    """`data` as sent; the status it must get, whether the connection must close, how many messages the
    upstream must see."""

    name: str
    data: bytes
    status: int = 400
    closes: bool = True
    seen: int = 0


def accepted(name: str, data: bytes, closes: bool = False) -> Case:
    return Case(name, data, 200, closes, 1)


def plain(fields: bytes = b"", line: bytes = LINE, host: bytes = HOST, length: bytes = LENGTH) -> bytes:
    return line + host + fields + length + b"\r\n" + CHAT


def chunked(body: bytes, fields: bytes = CHUNKED, line: bytes = LINE) -> bytes:
    return line + HOST + fields + b"\r\n" + body


def cases() -> list[Case]:
    """All of them; names are unique."""
    found = [
        *_controls(),
        *_lengths(),
        *_codings(),
        *_hosts(),
        *_targets(),
        *_versions_and_methods(),
        *_fields(),
        *_line_ends(),
        *_chunks(),
        *_sizes(),
    ]
    assert len({case.name for case in found}) == len(found)
    return found


def _controls() -> Iterator[Case]:
    yield accepted("plain", plain())
    yield accepted("length in lower case", plain(length=b"content-length: %d\r\n" % len(CHAT)))
    yield accepted("length in upper case", plain(length=b"CONTENT-LENGTH: %d\r\n" % len(CHAT)))
    yield accepted("length with leading zeros", plain(length=b"Content-Length: 00%d\r\n" % len(CHAT)))
    yield accepted("length with spaces around", plain(length=b"Content-Length:  %d \t\r\n" % len(CHAT)))
    yield accepted("length without a space", plain(length=b"Content-Length:%d\r\n" % len(CHAT)))
    yield accepted("length before host", plain(host=b"", length=LENGTH + HOST))
    yield accepted("empty lines before", b"\r\n\r\n" + plain())
    yield accepted("http 1.0", plain(line=LINE.replace(b"1.1", b"1.0")), closes=True)
    yield accepted("close", plain(b"Connection: close\r\n"), closes=True)
    yield accepted("obs-text in a value", plain(b"X-A: \xc3\xa9\xff\r\n"))
    yield accepted("tab in a value", plain(b"X-A: a\tb\r\n"))
    yield accepted("empty value", plain(b"X-A:\r\n"))
    yield accepted("query", plain(line=LINE.replace(b" HTTP", b"?a=b&c=/../ HTTP")))
    yield accepted("te is hop by hop", plain(b"TE: trailers\r\n"))
    yield accepted("upgrade without connection", plain(b"Upgrade: h2c\r\n"))
    for host in (b"a", b"a:80", b"127.0.0.1:1", b"[::1]", b"[::1]:80", b"a.b-c_d:"):
        yield accepted(f"host {host!r}", plain(host=b"Host: " + host + b"\r\n"))
    yield accepted("chunked", chunked(CHUNKS))
    yield accepted("chunked in capitals", chunked(CHUNKS, b"TRANSFER-ENCODING: Chunked\r\n"))
    yield accepted("chunk extension", chunked(CHUNKS.replace(b"\r\n", b";a=b;c\r\n", 1)))
    yield accepted("chunk size with zeros", chunked(b"000" + CHUNKS))
    yield accepted("chunk size in capitals", chunked(b"%X" % len(CHAT) + CHUNKS[2:]))
    yield accepted("trailer", chunked(CHUNKS[:-2] + b"X-T: 1\r\n\r\n"))
    half = len(CHAT) // 2
    two = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (half, CHAT[:half], len(CHAT) - half, CHAT[half:])
    yield accepted("two chunks", chunked(two))


def _lengths() -> Iterator[Case]:
    n = b"%d" % len(CHAT)
    bad = [b"+" + n, b"-" + n, b"0x" + n, n + b"," + n, n + b", " + n, n + b" " + n, n + b";", n + b".0"]
    bad += [b"abc", b"", b" ", n + b"e0", b"1_0", b"\xd9\xa1", b'"' + n + b'"', b"9" * 20, b"9" * 16]
    bad += [b"18446744073709551616", b"4294967296999999", b"0b1", b"/", b":", n + b"\x0b", b"\x0c" + n]
    for value in bad:
        yield Case(f"length {value!r}", plain(length=b"Content-Length: " + value + b"\r\n"))
    for other in (n, b"0", b"1", b"999", b"abc", b""):
        for name in (b"Content-Length", b"content-length", b"CONTENT-LENGTH"):
            twice = LENGTH + name + b": " + other + b"\r\n"
            yield Case(f"length twice {name!r} {other!r}", plain(length=twice))
            yield Case(f"length twice before {name!r} {other!r}", plain(name + b": " + other + b"\r\n"))
    for odd in (b"Content-Length : ", b"Content-Length\t: ", b" Content-Length: ", b"\tContent-Length: "):
        yield Case(f"length field {odd!r}", plain(b"X-A: 1\r\n", length=odd + n + b"\r\n"))


def _codings() -> Iterator[Case]:
    bad = [b"gzip", b"gzip, chunked", b"chunked, gzip", b"chunked, chunked", b"identity", b"xchunked"]
    bad += [b"chunkedx", b"\x0bchunked", b"chunked\x0c", b"chunked;q=1", b'"chunked"', b"", b"chunk", b","]
    bad += [b"chunked,", b",chunked", b"identity, chunked", b"chunked\x00", b"c hunked", b"\xa0chunked"]
    for value in bad:
        yield Case(f"coding {value!r}", chunked(CHUNKS, b"Transfer-Encoding: " + value + b"\r\n"))
        both = LENGTH + b"Transfer-Encoding: " + value + b"\r\n"
        yield Case(f"coding and length {value!r}", plain(length=both))
    for first, second in ((CHUNKED, LENGTH), (LENGTH, CHUNKED), (CHUNKED, CHUNKED)):
        for line in (LINE, LINE.replace(b"1.1", b"1.0")):
            name = f"framing twice {first!r} {second!r} {line[-5:-2]!r}"
            yield Case(name, chunked(CHUNKS, first + second, line))
    yield Case("chunked on 1.0", chunked(CHUNKS, line=LINE.replace(b"1.1", b"1.0")))
    for odd in (
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding\t: chunked",
        b"Transfer-Encoding:\r\n chunked",
    ):
        yield Case(f"coding field {odd!r}", chunked(CHUNKS, odd + b"\r\n"))
    for value in (b"200-ok", b"100-continue, x", b"", b"100-continue;a=b", b"continue"):
        yield Case(f"expect {value!r}", plain(b"Expect: " + value + b"\r\n"))
    yield Case("expect twice", plain(b"Expect: 100-continue\r\n" * 2))
    for value in (b"websocket", b"h2c", b"HTTP/2.0", b"TLS/1.0"):
        for line in (LINE, LINE.replace(b"POST", b"GET")):
            fields = b"Connection: Upgrade\r\nUpgrade: " + value + b"\r\n"
            yield Case(f"upgrade {value!r} {line[:4]!r}", plain(fields, line=line))


def _hosts() -> Iterator[Case]:
    yield Case("no host", plain(host=b""))
    for second in (b"h", b"other", b""):
        yield Case(f"two hosts {second!r}", plain(b"Host: " + second + b"\r\n"))
        yield Case(f"two hosts, other case {second!r}", plain(b"hOST: " + second + b"\r\n"))
    for host in (b"", b"a b", b"a/b", b"a@b", b"a,b", b"a#b", b"a?b", b"[::1", b"http://a", b"a:b", b"a:1:2"):
        yield Case(f"host {host!r}", plain(host=b"Host: " + host + b"\r\n"))
    for host in (b"a\\b", b"[]", b"a:999999", b"\xc3\xa9", b"a;b", b"a%00", b'"a"', b"a\tb", b"a|b", b"(a)"):
        yield Case(f"host {host!r}", plain(host=b"Host: " + host + b"\r\n"))


def _targets() -> Iterator[Case]:
    def line(target: bytes) -> bytes:
        return b"POST " + target + b" HTTP/1.1\r\n"

    path = b"/v1/chat/completions"
    odd = [b"http://h" + path, b"https://h" + path, b"//h" + path, path + b"#f", path + b"#", b"*", b"h:443"]
    odd += [b"v1/chat/completions", b"", b"?" + path, b" " + path, path + b" ", path + b" x", b"\\v1", b"h"]
    for target in odd:
        status, closes = (404, False) if target.startswith(b"//") else (400, True)
        yield Case(f"target {target!r}", plain(line=line(target)), status, closes)
    for byte in (*range(0x21), 0x23, *range(0x7F, 0x100)):
        target = b"/v1/chat" + bytes([byte]) + b"/completions"
        yield Case(f"target byte {byte:#04x}", plain(line=line(target)))


def _versions_and_methods() -> Iterator[Case]:
    versions = [b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/1.1 ", b"http/1.1", b"HTTP/1.", b"HTTP/1.10"]
    versions += [
        b"HTTP/01.1",
        b"HTTP/1,1",
        b"RTSP/1.0",
        b"ICE/1.0",
        b"",
        b"HTTP /1.1",
        b"HTTP/1.1\t",
        b"HTTP",
    ]
    versions += [b"HTTP/3", b"HTTP/1.1x", b"HTTPS/1.1", b"\x00HTTP/1.1", b"HTTP/1.1\x00", b"HTTP/9.9"]
    for version in versions:
        yield Case(f"version {version!r}", plain(line=b"POST /v1/chat/completions " + version + b"\r\n"))
    yield Case("no version", b"POST /v1/chat/completions\r\n" + HOST + LENGTH + b"\r\n" + CHAT)
    yield Case("http 0.9", b"GET /\r\n")
    methods = [b"post", b"Post", b"PO ST", b"POST\x00", b"", b"CONNECT", b"TRACE", b"SOURCE", b"PROPFIND"]
    methods += [
        b"DESCRIBE",
        b"G@T",
        b"POST\t",
        b" POST",
        b"\x0bPOST",
        b"PRI",
        b"POSTX",
        b"PURGE",
        b"LOCK",
        b"M-SEARCH",
    ]
    for method in methods:
        yield Case(f"method {method!r}", plain(line=method + LINE[4:]))
    for method in (b"GET", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"):
        yield Case(f"verb {method!r}", plain(line=method + LINE[4:]), 404, closes=False)
    yield Case("preface of http/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


def _fields() -> Iterator[Case]:
    for byte in (*range(0x20), 0x7F):
        if byte not in (0x09, 0x0A, 0x0D):
            yield Case(f"value byte {byte:#04x}", plain(b"X-A: a" + bytes([byte]) + b"b\r\n"))
    allowed = b"!#$%&'*+-.^_`|~"
    for byte in range(0x100):
        letter = bytes([byte])
        if letter.isalnum() or letter in allowed or byte in (0x3A, 0x0A, 0x0D):
            continue
        if byte in b'"(),/;<=>?@[\\]{} \t\x00\x7f\x80\xff':
            yield Case(f"name byte {byte:#04x}", plain(b"X-" + letter + b"A: 1\r\n"))
    for field in (b"X-A\r\n", b": x\r\n", b"X-A : 1\r\n", b"X A: 1\r\n", b"=\r\n", b"X-A;: 1\r\n"):
        yield Case(f"field {field!r}", plain(field))
    for fold in (b" ", b"\t", b" \t"):
        yield Case(f"fold in a value {fold!r}", plain(b"X-A: 1\r\n" + fold + b"2\r\n"))
        yield Case(f"fold in host {fold!r}", plain(host=b"Host: h\r\n" + fold + b"x\r\n"))
        yield Case(f"fold in length {fold!r}", plain(length=b"Content-Length:\r\n" + fold + b"5\r\n"))
        yield Case(f"space before the first field {fold!r}", plain(host=fold + HOST))


def _line_ends() -> Iterator[Case]:
    whole = plain(b"X-A: 1\r\n")
    head, _, body = whole.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    for end in (b"\n", b"\r", b"\r\r\n", b"\n\r", b"\x0b\r\n", b"\x00\r\n"):
        for i in range(len(lines)):
            parts = [line + (end if j == i else b"\r\n") for j, line in enumerate(lines)]
            # A CR before the CRLF of Content-Length's line and the like: nobody may read it as white space.
            yield Case(f"line end {end!r} at {i}", b"".join(parts) + b"\r\n" + body)
    yield Case("bare LF only", whole.replace(b"\r\n", b"\n"))
    yield Case("LF before", b"\n" + whole)


def _chunks() -> Iterator[Case]:
    size = b"%x" % len(CHAT)
    bad = [
        b"0x" + size,
        b"+" + size,
        b"-" + size,
        b" " + size,
        size + b" ",
        b"g",
        b"",
        size + b"\t",
        b"\t" + size,
    ]
    bad += [
        size + b"_0",
        size + b",",
        size + b" ;a",
        b"FFFFFFFFF",
        b"0" * 9 + size,
        size + b";\x00",
        size + b";\x7f",
    ]
    bad += [
        size + b";a\n",
        size + b"\n",
        size + b"\r",
        b"\xef\xbc\x91",
        size + b"h",
        b"1e1z",
        size + b".",
        b'"1"',
    ]
    for text in bad:
        yield Case(f"chunk size {text!r}", chunked(text + b"\r\n" + CHAT + b"\r\n0\r\n\r\n"))
    for end in (b"\n", b"xx", b"\n\r", b"\r\r", b"x\r\n", b" \r\n", b"\x00\r\n"):
        yield Case(f"chunk end {end!r}", chunked(size + b"\r\n" + CHAT + end + b"0\r\n\r\n"))
    yield Case("chunk size line ends in LF", chunked(size + b"\n" + CHAT + b"\r\n0\r\n\r\n"))
    yield Case("chunk longer than said", chunked(b"%x\r\n%bX\r\n0\r\n\r\n" % (len(CHAT), CHAT)))
    yield Case("chunk shorter than said", chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(CHAT) + 1, CHAT)))
    yield Case("long extension", chunked(size + b";" + b"a" * 2000 + b"\r\n" + CHAT + b"\r\n0\r\n\r\n"))
    trailers = [
        b"Content-Length: 1",
        b"Transfer-Encoding: chunked",
        b"Host: x",
        b"Connection: close",
        b"X A: 1",
    ]
    trailers += [
        b"X-A",
        b": 1",
        b" X-A: 1",
        b"X-A : 1",
        b"X-A: \x00",
        b"X-A: 1\n",
        b"X-A: 1\rX",
        b"X-A: " + b"a" * 2000,
    ]
    for trailer in trailers:
        yield Case(f"trailer {trailer[:40]!r}", chunked(CHUNKS[:-2] + trailer + b"\r\n\r\n"))
    yield Case("many trailers", chunked(CHUNKS[:-2] + (b"X-A: " + b"a" * 500 + b"\r\n") * 20 + b"\r\n"))


def _sizes() -> Iterator[Case]:
    yield Case("target too long", plain(line=b"POST /" + b"a" * 8192 + b" HTTP/1.1\r\n"), 414)
    yield Case("head too large", plain((b"X-A: " + b"a" * 4000 + b"\r\n") * 9), 431)
    yield Case("too many fields", plain(b"X-A: 1\r\n" * 99), 431)
    yield Case("body too large", plain(length=b"Content-Length: 16777217\r\n"))
