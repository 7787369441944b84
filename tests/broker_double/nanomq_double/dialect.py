"""Reader of the broker's configuration language, a loose relative of HOCON.

`parse_file` and `parse_text` give nested `dict`, `list`, `str`, `bool`, `int`, `float` and `None`.  What is wrong
in the language stays wrong here: a file that makes the real broker crash raises `Crash`, one that it refuses raises
`ParserError`, and what it skips is skipped.
"""

from __future__ import annotations

import re

MAX_INCLUDE_DEPTH = 10

# The longest match wins, the earlier rule on equal length: a number ends where its letters begin, so `12abc` is two
# tokens, and `true.x` is a string.
_RULES = [
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("skip", r"[\t\n\r ]+|#[^\n]*|//[^\n]*"),
        ("{", r"\{"),
        ("}", r"\}"),
        ("[", r"\["),
        ("]", r"\]"),
        (",", r","),
        ("=", r"[:=]"),
        ("true", r"true"),
        ("false", r"false"),
        ("null", r"null"),
        ("include", r'include[\t ]+(?:required\()?(?:file\()?"'),
        ("text", r"[0-9]+(?:[KMG]B|[kmg]b)|[0-9]+%|[0-9]+(?:ms|us|[smhdSMHD])"),
        # A quote behind a backslash ends the string only where no better end follows.
        ("string", r'"(?:\\"|[^"])*"'),
        ("bare", r'[A-Za-z](?:["%\-.0-9@A-Z\\_a-z|])*'),
        ("integer", r"[+-]?[0-9]+"),
        ("decimal", r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?"),
        ("variable", r"\$\{\??[A-Za-z0-9_.]+\}"),
    )
]


class ParserError(Exception):
    """The broker prints `Parser syntax error` and exits with 1."""


class Crash(Exception):
    """The broker dies of a segmentation fault."""


class _Object(list):
    """Members in the order of the file, doubles included: `[[key, value], ...]`."""


class _Lexer:
    """One token of look-ahead over a file and the files that it includes."""

    def __init__(self, text: str) -> None:
        self._inputs = [(text, 0)]
        self._dangling = False
        self.doomed = False
        self.kind, self.text = self._next()

    def advance(self) -> None:
        self.kind, self.text = self._next()

    def peek(self) -> str:
        """Kind of the token behind the current one."""
        saved, dangling = list(self._inputs), self._dangling
        try:
            return self._next()[0]
        finally:
            self._inputs, self._dangling = saved, dangling

    def _next(self) -> tuple[str, str]:
        while True:
            text, position = self._inputs[-1]
            if position >= len(text):
                if len(self._inputs) > 1:
                    self._inputs.pop()
                    continue
                if self._dangling:
                    raise Crash("end of a file with an include that could not be opened")
                return "end", ""
            kind, token = self._longest(text, position)
            self._inputs[-1] = (text, position + len(token))
            if kind == "include":
                self._include(token)
            elif kind not in ("skip", "variable", "unknown"):
                return kind, token

    @staticmethod
    def _longest(text: str, position: int) -> tuple[str, str]:
        best = ("unknown", text[position])
        length = 0
        for kind, pattern in _RULES:
            match = pattern.match(text, position)
            if match and match.end() - position > length:
                length = match.end() - position
                best = (kind, match.group())
        return best

    def _include(self, opening: str) -> None:
        text, position = self._inputs[-1]
        end = text.find('"', position)
        if end < 0:
            raise ParserError
        name = text[position:end]
        position = end + 1
        for _parenthesis in range(opening.count("(")):
            position = text.find(")", position) + 1
        self._inputs[-1] = (text, position)
        if len(self._inputs) > MAX_INCLUDE_DEPTH:
            raise ParserError
        try:
            self._inputs.append((_read(name.encode("latin-1")), 0))
        except OSError:
            print(f"File {name} is not exist!", flush=True)
            self._dangling = True


def parse_file(path: str) -> object:
    """Value of the file at `path`; `OSError` where it cannot be read."""
    return parse_text(_read(path))


def parse_text(text: str) -> object:
    """Value of `text`, whose characters stand for bytes (latin-1)."""
    lexer = _Lexer(text)
    value = _value(lexer)
    if lexer.kind != "end":
        raise ParserError
    if lexer.doomed:
        raise Crash("empty array")
    _spread_dotted_keys(value)
    return _plain(value)


def _read(path: str | bytes) -> str:
    with open(path, "rb") as file:
        return file.read().decode("latin-1")


def _value(lexer: _Lexer) -> object:
    kind, text = lexer.kind, lexer.text
    if kind == "{":
        return _object(lexer)
    if kind == "[":
        lexer.advance()
        if lexer.kind == "]":
            # The parser goes on with a wild pointer, and dies at its first use.
            lexer.doomed = True
            lexer.advance()
            return None
        return _values(lexer)
    if _starts_member(lexer):
        return _members(lexer)
    lexer.advance()
    scalars = {"true": True, "false": False, "null": None}
    if kind in scalars:
        return scalars[kind]
    if kind == "string":
        return _decode(_unescape(text))
    if kind in ("bare", "text"):
        return _decode(text)
    if kind == "integer":
        return int(text)
    if kind == "decimal":
        return float(text)
    raise ParserError


def _object(lexer: _Lexer) -> _Object:
    lexer.advance()
    members = _Object()
    if lexer.kind != "}":
        if not _starts_member(lexer):
            raise ParserError
        members = _members(lexer)
    if lexer.kind != "}":
        raise ParserError
    lexer.advance()
    return members


def _starts_member(lexer: _Lexer) -> bool:
    if lexer.kind not in ("bare", "string"):
        return False
    follower = lexer.peek()
    return follower == "=" or (lexer.kind == "bare" and follower in ("{", "["))


def _members(lexer: _Lexer) -> _Object:
    members = _Object([_member(lexer)])
    while lexer.kind in (",", "bare", "string"):
        if lexer.kind == ",":
            # Within an array, too: the comma is taken for the members', so `[a=1, 5]` is an error.
            lexer.advance()
        if not _starts_member(lexer):
            raise ParserError
        members.append(_member(lexer))
    # An empty object is no value at all.
    return _Object([key, value] for key, value in members if not (isinstance(value, _Object) and not value))


def _member(lexer: _Lexer) -> list:
    key = _key(lexer)
    lexer.advance()
    if lexer.kind == "=":
        lexer.advance()
        return [key, _value(lexer)]
    if lexer.kind == "[":
        lexer.advance()
        return [key, _values(lexer)]
    lexer.advance()
    value = _value(lexer)
    if lexer.kind != "}":
        raise ParserError
    lexer.advance()
    return [key, value]


def _key(lexer: _Lexer) -> str:
    if lexer.kind == "bare":
        return _decode(lexer.text)
    # The quotes stay where there is a dot: they keep it from being a path.
    return _decode(lexer.text if "." in lexer.text else _unescape(lexer.text))


def _values(lexer: _Lexer) -> list:
    values = [_value(lexer)]
    while lexer.kind != "]":
        if lexer.kind == ",":
            lexer.advance()
        if lexer.kind == "end":
            raise ParserError
        values.append(_value(lexer))
    lexer.advance()
    return [value for value in values if not (isinstance(value, _Object) and not value)]


def _unescape(token: str) -> str:
    """Text between the quotes: no backslash survives, and a NUL ends it together with the character before."""
    return token.partition("\0")[0][1:].replace("\\", "")[:-1]


def _decode(text: str) -> str:
    return text.partition("\0")[0].encode("latin-1").decode("utf-8", "surrogateescape")


def _spread_dotted_keys(value: object) -> None:
    """Turn `a.b = 1` into `a { b = 1 }`, put behind all other members."""
    if isinstance(value, _Object):
        index = 0
        while index < len(value):
            key, child = value[index]
            _spread_dotted_keys(child)
            if key.startswith('"'):
                value[index][0] = _unescape(key)
            elif "." in key:
                del value[index]
                head, *path = key.split(".")
                for name in reversed(path):
                    child = _Object([[name, child]])
                value.append([head, child])
                continue
            index += 1
    elif isinstance(value, list):
        for item in value:
            _spread_dotted_keys(item)


def _plain(value: object) -> object:
    """Merge doubles: the last one wins, but where two objects merge, the members of the first do."""
    if isinstance(value, _Object):
        merged: dict[str, object] = {}
        for key, child in value:
            earlier = merged.pop(key, None)
            if isinstance(child, _Object) and isinstance(earlier, _Object):
                child = _Object(child + earlier)
            merged[key] = child
        return {key: _plain(child) for key, child in merged.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
