"""Secrets taken out of text and of documents. Pure.

It errs on the side of taking out too much: what follows a word such as `token`, `password` or `client-key-data`, what
looks like a certificate, a key, a token of a known kind, or a long run of base64. Names, addresses, paths and numbers
stay. No pattern goes back more than a bounded way, so hostile text costs time in proportion to its size.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Final

REMOVED: Final = "[removed]"

# Parts of names whose value is a secret, without "-", "_" and capitals. `tokenFile` and the like are names of files.
_SECRET_NAMES: Final = (
    "password", "passwd", "passphrase", "secret", "token", "bearer", "authorization", "credential", "privatekey",
    "apikey", "accesskey", "clientkey", "certificatedata", "keydata", "authoritydata", "cookie", "signature", "jwt",
)  # fmt: skip
_HARMLESS_ENDS: Final = ("file", "path", "dir", "name", "kind", "count", "total", "seconds", "ttl", "expiry")
_HARMLESS_VALUES: Final = frozenset({"", "null", "none", "true", "false", "{}", "[]", "~", "0"})

# Letters that nobody sees, and commands to a terminal, must not hide a name.
_HIDDEN: Final = re.compile("\x1b\\[[0-9;?]{0,30}[A-Za-z]|[\0\x1b\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
# name: value, name = value, "name": "value", NAME=value, and \"name\":\"value\" within another text.
_PAIR: Final = re.compile(
    r"(?<![A-Za-z0-9_.\-])(?P<name>[A-Za-z0-9_.\-]{1,80})(?:\\{0,3}[\"'])?\s{0,20}(?P<mark>[:=])[ \t]{0,200}"
)
_NAMED: Final = re.compile(
    r"(?i)name[\\\"']{0,4}\s{0,20}[:=]\s{0,20}[\\\"']{0,4}(?P<name>[\w.\-]{1,80})[\\\"',\s]{0,200}$"
)
_BLOCK_SCALAR: Final = re.compile(r"[|>][+\-0-9]{0,3}[ \t]{0,20}(?:#[^\n]{0,200})?$", re.MULTILINE)
_QUOTE: Final = re.compile(r"\\{0,3}[\"']")
# A value in quotes that goes on for longer than this is taken for one that is not closed, and its line goes.
_MOST: Final = 4096
_QUOTED: Final = {
    '"': re.compile(rf'(?:[^"\\]|\\.){{0,{_MOST}}}"', re.DOTALL),
    "'": re.compile(rf"[^']{{0,{_MOST}}}'"),
}
_BRACKETS: Final = {"{": "}", "[": "]"}

_PEM: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{1,60}-----.*?(?:-----END [A-Z0-9 ]{1,60}-----|\Z)", re.DOTALL)
_FLAG: Final = re.compile(r"(?P<head>(?<![\w\-])--(?P<name>[A-Za-z0-9_\-]{1,80})[ \t]{1,20})[^\s\-]\S*")
_SHAPES: Final = (
    (re.compile(r"(?i)\b(bearer|basic|negotiate|digest)[ \t]{1,20}[A-Za-z0-9._~+/=\-]{6,}"), rf"\1 {REMOVED}"),
    (re.compile(r"(?<![\w\-])eyJ[A-Za-z0-9_\-]{4,}(?:\.[A-Za-z0-9_\-]*){1,4}"), REMOVED),  # JSON web tokens
    (re.compile(r"(?i)(?<![a-z0-9+.\-])([a-z][a-z0-9+.\-]{0,30}://)[^\s/@]{1,1000}@"), rf"\1{REMOVED}@"),
    (re.compile(r"((?<![\w\-])(?:-u|--user)[ =]{1,5})[^\s:]{1,200}:\S+"), rf"\1{REMOVED}"),  # of curl
    (re.compile(r"LS0tLS1CRUdJTi[A-Za-z0-9+/=]*"), REMOVED),  # "-----BEGIN " in base64
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), REMOVED),  # keys of AWS
    (re.compile(r"\bgh[opsur]_[A-Za-z0-9]{20,255}\b"), REMOVED),  # tokens of GitHub
    (re.compile(r"\bya29\.[A-Za-z0-9_\-]{20,}"), REMOVED),  # tokens of Google
    (re.compile(r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b"), REMOVED),  # bootstrap tokens of Kubernetes
)
# A line of a certificate has 64 letters; digests of programs have as many, of two kinds.
_LONG: Final = re.compile(r"[A-Za-z0-9+/_\-]{60,}={0,2}")
_VERY_LONG: Final = 130


def text(given: str) -> str:
    """The text without what is, or may be, a secret, and without invisible letters. A second time changes nothing."""
    result = _HIDDEN.sub("", given if given.isascii() else unicodedata.normalize("NFKC", given))
    result = _PEM.sub(lambda found: REMOVED + "\n" * found[0].count("\n"), result)
    result = "".join(_without_pairs(result))
    result = _FLAG.sub(lambda found: found["head"] + REMOVED if is_secret(found["name"]) else found[0], result)
    for pattern, replacement in _SHAPES:
        result = pattern.sub(replacement, result)
    return _LONG.sub(_without_run, result)


def document(given: Any, *, name: str = "") -> Any:
    """A document of plain values without secrets: those under a telling name go whole, all text is treated as `text`
    does."""
    if name and is_secret(name) and not isinstance(given, bool | int | float | None):
        return REMOVED if given else given
    match given:
        case Mapping():
            named = str(given.get("name", "")) if "value" in given else ""
            return {
                text(str(key)): document(value, name=named if named and key == "value" else str(key))
                for key, value in given.items()
            }
        case list() | tuple():
            return [document(value) for value in given]
        case str():
            return text(given)
        case _:
            return given


def is_secret(name: str) -> bool:
    """Whether what goes by this name is a secret."""
    plain = name.lower().replace("-", "").replace("_", "")
    return not plain.endswith(_HARMLESS_ENDS) and any(part in plain for part in _SECRET_NAMES)


def _without_pairs(given: str) -> list[str]:
    """The pieces of the text without the values that go by the name of a secret."""
    pieces: list[str] = []
    done = at = 0
    while found := _PAIR.search(given, at):
        at = found.end("mark")
        named = found["name"].lower() == "value" and _names_a_secret(given, found.start("name"))
        if not (named or is_secret(found["name"])) or _is_service_port(given, found):
            continue
        end, replacement = _value(given, found)
        if given[found.end() : end].strip("\\\"' \t\r,;").lower() in _HARMLESS_VALUES:
            continue
        pieces += (given[done : found.end()], replacement)
        done = at = end
    return [*pieces, given[done:]]


def _names_a_secret(given: str, at: int) -> bool:
    """Whether a `name: ...` right before says what the `value` here is, as in the environment of a container."""
    said = _NAMED.search(given, max(0, at - 300), at)
    return bool(said and is_secret(said["name"]))


def _is_service_port(given: str, found: re.Match[str]) -> bool:
    """Whether it is a Service called so, with a port behind it (default/token-server:http), and no pair."""
    before = given[found.start() - 1 : found.start()]
    return before == "/" and found["mark"] == ":" and given[found.end("mark") :][:1].isalnum()


def _value(given: str, found: re.Match[str]) -> tuple[int, str]:
    """Where the value of a pair ends, and what to write in its place."""
    start = found.end()
    line_end = given.find("\n", start)
    line_end = len(given) if line_end < 0 else line_end
    if start >= line_end or given[start] == "\r" or _BLOCK_SCALAR.match(given, start):
        end = _block_end(given, found.start("name"), line_end)
        return (end, f" {REMOVED}\n" if end > line_end else "")
    quote = _QUOTE.match(given, start)
    if quote:
        closing = quote[0]
        if len(closing) == 1:
            quoted = _QUOTED[closing].match(given, quote.end())
            end = quoted.end() if quoted else line_end
        else:
            end = given.find(closing, quote.end(), quote.end() + _MOST)
            end = line_end if end < 0 else end + len(closing)
        return end, f"{closing}{REMOVED}{closing}"
    if given[start] in _BRACKETS:
        return _bracket_end(given, start), REMOVED
    # A bare value of YAML may go on below.
    return _block_end(given, found.start("name"), line_end) if found["mark"] == ":" else line_end, REMOVED


def _block_end(given: str, name_at: int, line_end: int) -> int:
    """The end of the lines below a line that stand further to the right than its name, or are blank."""
    line_start = given.rfind("\n", 0, name_at) + 1
    indent = name_at - line_start
    end = line_end
    while end < len(given):
        begin = end + 1
        after = given.find("\n", begin)
        after = len(given) if after < 0 else after
        line = given[begin:after]
        if line.strip() and len(line) - len(line.lstrip(" \t")) <= indent:
            break
        end = after
        if begin >= len(given):
            break
    return end


def _bracket_end(given: str, start: int) -> int:
    """The end of a list or an object that begins here; the end of the text if it is not closed."""
    depth = 0
    for found in re.compile(r"[\[\]{}]").finditer(given, start):
        depth += 1 if found[0] in _BRACKETS else -1
        if depth == 0:
            return found.end()
    return len(given)


def _without_run(found: re.Match[str]) -> str:
    """Long runs of one kind of letter are drawings, and of two kinds digests."""
    kinds = sum(bool(re.search(kind, found[0])) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
    return REMOVED if kinds == 3 or (kinds == 2 and len(found[0]) >= _VERY_LONG) else found[0]
