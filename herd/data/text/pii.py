"""Personal data and secrets in a text, replaced by a mask: e-mail addresses, telephone numbers, IBANs, API keys.

FineWeb2 masks e-mail and IP addresses; telephone numbers, IBANs and keys are masked here too. What makes a number a
telephone number is a `+` or `00` before it, the North American form with separators, or a word such as `Tel.` before
it: other digits are dates, prices and versions far more often. An IBAN has its country's length and the right
checksum. Keys are recognised by the prefixes that their issuers gave them for that purpose (as gitleaks lists them).
Names and postal addresses are not masked.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection

from herd.config.cleaning import PiiKind

ALL_KINDS: tuple[PiiKind, ...] = ("key", "email", "iban", "phone")
"""In the order in which they are masked: a key may have what looks like an address or a number in it."""
MASKS: dict[PiiKind, str] = {"key": "[key]", "email": "[email]", "iban": "[iban]", "phone": "[phone]"}

IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18,
    "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SD": 18,
    "SE": 24, "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22,
    "VG": 24, "XK": 20,
}  # fmt: skip
"""Characters of an IBAN, by country (SWIFT's IBAN registry)."""

_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_IBAN_SIGN = re.compile(r"\d\d(?<=[A-Z]{2}\d\d)")
"""What an IBAN has, faster to look for than it; likewise the other signs."""
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")

_SEPARATOR = r"[ \u00a0.\-/()]{0,3}"
_PHONE_SIGN = re.compile(rf"\d(?:{_SEPARATOR}\d){{5}}")
_INTERNATIONAL = re.compile(rf"(?<![\w+.,])(?:\+|(?<!\d )00(?=[1-9]))(?:{_SEPARATOR}\d){{7,14}}(?![\w]|[.,-]\d)")
_NORTH_AMERICAN = re.compile(r"(?<![\w+.,/-])(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}(?![\w]|[.,/-]\d)")
_CUES = (
    ("tel", "tél", "telefon", "telefono", "teléfono", "telefone", "telepon", "telp", "téléphone", "telephone", "phone")
    + ("fax", "mobile", "mobil", "móvil", "cell", "handy", "portable", "cellulare", "celular", "whatsapp", "hp")
    + ("тел", "телефон", "факс", "điện thoại", "đt", "फ़ोन", "फोन", "दूरभाष", "هاتف", "تلفون", "جوال")
    + ("電話", "電話番号", "电话", "手机", "传真")
)
_AFTER_CUE = re.compile(
    rf"(?<!\w)({'|'.join(sorted(_CUES, key=len, reverse=True))})(\.?[ \t]?(?:no\.?|nr\.?|number)?[:：.]?[ \t]{{0,3}})"
    rf"(?:\(?\d(?:{_SEPARATOR}\d){{5,13}})(?!\w|[.,-]\d)",
    re.IGNORECASE,
)

_BASE64 = r"[A-Za-z0-9+/=_-]"
_KEY_SIGNS = (
    "AKIA",
    "ASIA",
    "ghp_",
    "gho_",
    "ghs_",
    "ghu_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "sk-",
    "k_live_",
    "k_test_",
) + ("AIza", "xox", "hf_", "npm_", "pypi-", "SG.", "eyJ", "PRIVATE KEY-")
_KEY = re.compile(
    "|".join(
        (
            r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",  # AWS
            r"\bgh[opsur]_[A-Za-z0-9]{36,255}",  # GitHub
            r"\bgithub_pat_[A-Za-z0-9_]{60,255}",
            r"\bglpat-[A-Za-z0-9_-]{20,64}",  # GitLab
            # OpenAI, Anthropic, OpenRouter
            r"\bsk-(?:ant-|proj-|svcacct-|or-v1-)?(?=[A-Za-z_-]{0,200}\d)[A-Za-z0-9_-]{32,200}",
            r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,100}",  # Stripe
            r"\bAIza[A-Za-z0-9_-]{35}",  # Google
            r"\bxox[abeoprs]-[A-Za-z0-9-]{10,200}",  # Slack
            r"\bhf_[A-Za-z0-9]{30,50}\b",  # Hugging Face
            r"\bnpm_[A-Za-z0-9]{36}\b",
            r"\bpypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,255}",
            r"\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}",  # SendGrid
            r"\beyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000}",  # JSON web token
            rf"-----BEGIN [A-Z ]{{0,20}}PRIVATE KEY-----(?:\s+{_BASE64}{{16,}})+(?:\s+{_BASE64}+(?=\s*-----END))?"
            r"(?:\s*-----END [A-Z ]{0,20}PRIVATE KEY-----)?",
        )
    )
)


def mask(text: str, kinds: Collection[PiiKind] = ALL_KINDS) -> tuple[str, Counter[str]]:
    """`text` with what is of these kinds replaced, and how many of each there were. Masked text stays as it is."""
    found: Counter[str] = Counter()
    while True:
        before = found.total()
        for kind in ALL_KINDS:
            if kind in kinds:
                text, number = _MASKERS[kind](text)
                found[kind] += number
        # What stood beside a mask may be complete only now.
        if found.total() == before:
            return text, +found


def is_iban(text: str) -> bool:
    """Whether `text`, without spaces, has the length of its country's IBANs and the right checksum (ISO 13616)."""
    if len(text) != IBAN_LENGTHS.get(text[:2]):
        return False
    return int("".join(str(int(char, 36)) for char in text[4:] + text[:4])) % 97 == 1


def _mask_emails(text: str) -> tuple[str, int]:
    return _EMAIL.subn(MASKS["email"], text) if "@" in text else (text, 0)


def _mask_keys(text: str) -> tuple[str, int]:
    return _KEY.subn(MASKS["key"], text) if any(map(text.__contains__, _KEY_SIGNS)) else (text, 0)


def _mask_ibans(text: str) -> tuple[str, int]:
    if not _IBAN_SIGN.search(text):
        return text, 0
    number = 0

    def masked(match: re.Match[str]) -> str:
        nonlocal number
        # What follows may be capitals too: only as many characters as the country has belong to it.
        whole = match.group()
        length = IBAN_LENGTHS.get(whole[:2], 0)
        end = taken = 0
        while end < len(whole) and taken < length:
            taken += whole[end] != " "
            end += 1
        if not is_iban(whole[:end].replace(" ", "")) or (end < len(whole) and whole[end].isalnum()):
            return whole
        number += 1
        return MASKS["iban"] + whole[end:]

    return _IBAN.sub(masked, text), number


def _mask_phones(text: str) -> tuple[str, int]:
    if not _PHONE_SIGN.search(text):
        return text, 0
    text, international = _INTERNATIONAL.subn(MASKS["phone"], text)
    text, american = _NORTH_AMERICAN.subn(MASKS["phone"], text)
    text, cued = _AFTER_CUE.subn(rf"\1\2{MASKS['phone']}", text)
    return text, international + american + cued


_MASKERS: dict[PiiKind, Callable[[str], tuple[str, int]]] = {
    "key": _mask_keys,
    "email": _mask_emails,
    "iban": _mask_ibans,
    "phone": _mask_phones,
}
