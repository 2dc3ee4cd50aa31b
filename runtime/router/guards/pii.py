"""Personal data in text: what it is and where it stands. Local: nothing is looked up or loaded elsewhere.

Found are e-mail addresses, phone numbers (with a country code, or as written in the United States), payment
cards (a brand's range and length, and Luhn's check digit), IBANs (length of the country, mod 97) and US
social security numbers as they are printed (areas and groups that were never given out excepted).

Candidates come from patterns that take time in proportion to the text, whatever it is; the libraries of the
extra `pii` decide on the candidates. Names, addresses and other data without a form of their own, and local
phone numbers of other countries, are not found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from servestate.runtime.router.guards.plain import Places, plain

_LOCAL = re.compile(r"\w[\w.!#$%&'*+/=?^`{|}~-]{0,63}\Z")
_DOMAIN = re.compile(r"(?:\w(?:[\w-]{0,61}\w)?\.){1,8}(?:xn--[a-z0-9-]{1,59}|[^\W\d_]{2,63})", re.IGNORECASE)
_LOCAL_CHARACTERS, _DOMAIN_CHARACTERS = 64, 255  # RFC 5321, 4.5.3.1
_CARD = re.compile(r"[2-6](?<!\d\d)(?=((?:[ .-]?\d){11,18}))")
_CARD_BRAND = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}"  # Visa, Mastercard
    r"|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"  # Mastercard
    r"|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}"  # Amex, Diners, JCB
    r"|6(?:011|4[4-9]\d|5\d\d)\d{12}|62\d{14,17}|(?:50|5[6-9]|6\d)\d{14,17}"  # Discover, UnionPay, Maestro
)
_SSN = re.compile(r"\d\d\d(?<!\d{4})([ .-])(?<!\d\1\d\d\d\1)\d\d\1\d{4}(?!\d)")
_IBAN = re.compile(r"\d\d(?<=[A-Za-z]{2}\d\d)(?<![^\W_][A-Za-z]{2}\d\d)(?=((?:[ -]?[A-Za-z0-9]){11,30}))")
_DIGITS = re.compile(r"\d(?:[ \t\xa0()\[\]./~+-]{0,4}\d){6,29}")
_BEFORE, _AFTER = 8, 16  # characters: `tel:+(` and an extension
_EMAIL_S, _CARD_S, _IBAN_S, _PHONE_S = 3e-6, 3e-5, 2e-4, 5e-4  # a candidate, at worst
_LONGEST = 32  # characters: more than a phone number takes


@dataclass(slots=True)
class Effort:
    """What may still be spent on one body, however many texts it has: `left` seconds of the processor, by
    what a candidate takes at worst and not by a clock, so that the same body always ends the same way."""

    left: float = 1.0

    def spend(self, seconds: float) -> None:
        """Raises TooMuch."""
        self.left -= seconds
        if self.left < 0:
            raise TooMuch("too much of it could be personal data")


class TooMuch(ValueError):
    """More than can be judged in reasonable time."""


@dataclass(frozen=True, slots=True)
class Found:
    """Personal data from `start` to before `end` of a text."""

    start: int
    end: int
    entity: str

    @property
    def label(self) -> str:
        """What stands for it where it is masked."""
        return f"<{self.entity}>"


class Detector:
    """Raises ValueError, with what to install, where the libraries are missing."""

    def __init__(self) -> None:
        try:
            import phonenumbers
            from stdnum import iban, luhn
            from stdnum.us import ssn
        except ImportError as error:
            raise ValueError(
                f"looking for personal data needs the package {error.name!r}\n"
                "  fix: install servestate[pii], or take `pii` out of the guardrails"
            ) from None
        self._is_luhn: Callable[[str], bool] = luhn.is_valid
        self._is_ssn: Callable[[str], bool] = ssn.is_valid
        self._is_iban: Callable[[str], bool] = lambda text: iban.is_valid(text, check_country=False)
        self._numbers = phonenumbers.PhoneNumberMatcher
        self._leniency = phonenumbers.Leniency.VALID

    def find(self, text: str, effort: Effort) -> list[Found]:
        """What is in `text`, in order, apart from each other. Raises TooMuch once `effort` is used up."""
        seen = plain(text)
        found = [*self._emails(seen, effort), *self._cards(seen, effort), *self._ibans(seen, effort)]
        found += [*self._ssns(seen), *self._phones(seen, effort)]
        if not found:
            return []
        places = Places(text)
        return [Found(*places.span(one.start, one.end), one.entity) for one in _apart(found)]

    def _emails(self, text: str, effort: Effort) -> Iterator[Found]:
        at = text.find("@")
        while at >= 0:
            effort.spend(_EMAIL_S)
            local = _LOCAL.search(text[max(0, at - _LOCAL_CHARACTERS) : at])
            domain = _DOMAIN.match(text, at + 1, at + 1 + _DOMAIN_CHARACTERS)
            if local and domain:
                yield Found(at - len(local[0]), domain.end(), "EMAIL_ADDRESS")
            at = text.find("@", at + 1)

    def _cards(self, text: str, effort: Effort) -> Iterator[Found]:
        for match in _CARD.finditer(text):
            effort.spend(_CARD_S)
            ends = [i for i in range(match.start(), match.end(1)) if text[i].isdigit()]
            for count in range(len(ends), 11, -1):
                end = ends[count - 1] + 1
                number = "".join(text[i] for i in ends[:count])
                whole = not text[end : end + 1].isdigit()
                if whole and _CARD_BRAND.fullmatch(number) and self._is_luhn(number):
                    yield Found(match.start(), end, "CREDIT_CARD")
                    break

    def _ibans(self, text: str, effort: Effort) -> Iterator[Found]:
        for match in _IBAN.finditer(text):
            effort.spend(_IBAN_S)
            start = match.start() - 2
            for end in range(match.end(1), start + 14, -1):
                whole = not text[end : end + 1].isalnum() and text[end - 1].isalnum()
                if whole and self._is_iban(text[start:end]):
                    yield Found(start, end, "IBAN_CODE")
                    break

    def _ssns(self, text: str) -> Iterator[Found]:
        for match in _SSN.finditer(text):
            if self._is_ssn(match[0].replace(match[1], "-")):
                yield Found(match.start(), match.end(), "US_SSN")

    def _phones(self, text: str, effort: Effort) -> Iterator[Found]:
        """The library looks at the surroundings of enough digits only: it is slow on digits. A long run of
        them comes in several matches, and a number may begin in the one before."""
        last = -_LONGEST
        for match in _DIGITS.finditer(text):
            effort.spend(_PHONE_S)
            before = _LONGEST if match.start() - last <= 4 else _BEFORE
            begin, last = max(0, match.start() - before), match.end()
            window = text[begin : match.end() + _AFTER]
            for number in self._numbers(window, "US", leniency=self._leniency):
                start, end = begin + number.start, begin + number.end
                if start < match.end() and end > match.start():
                    yield Found(start, end, "PHONE_NUMBER")


_RANK = ("CREDIT_CARD", "IBAN_CODE", "US_SSN", "EMAIL_ADDRESS", "PHONE_NUMBER")
"""What a stretch is called that can be read in several ways: the surest first."""


def _apart(found: list[Found]) -> Iterator[Found]:
    """What overlaps is one find, under the name of the surest."""
    current: Found | None = None
    for one in sorted(found, key=lambda f: f.start):
        if current is None or one.start >= current.end:
            if current is not None:
                yield current
            current = one
        else:
            entity = min(current.entity, one.entity, key=_RANK.index)
            current = Found(current.start, max(current.end, one.end), entity)
    if current is not None:
        yield current
