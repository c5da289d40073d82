"""Personal data and secrets are masked and counted, and what only looks like them is left alone."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.data.text.documents import Document
from herd.data.text.pii import ALL_KINDS, IBAN_LENGTHS, is_iban, mask
from herd.data.text.report import Report

A36 = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"

EMAILS = [
    "anna@example.org", "a.b-c+tag@mail.example.co.uk", "ANNA_BERG@EXAMPLE.ORG", "müller@bücher.de", "1234@qq.com",
    "иван@почта.рф", "x%y@sub.sub.sub.example.museum",
]  # fmt: skip
PHONES = [
    "+49 30 901820", "+1 (212) 555-0123", "+44 20 7946 0958", "0049 30 901820", "+33 1 23 45 67 89", "(212) 555-0123",
    "212-555-0123", "1-800-555-0199", "212.555.0123", "+91 98765 43210", "+81-3-1234-5678", "+86 10 1234 5678",
    "+55 (11) 91234-5678", "+7 495 123-45-67", "+٩٦٦ ٥٠ ١٢٣ ٤٥٦٧",
]  # fmt: skip
CUED = [
    ("Tel. 030/901820", "Tel. [phone]"), ("Tel.: 030 90 18 20", "Tel.: [phone]"), ("Fax 01 23 45 67 89", "Fax [phone]"),
    ("téléphone : 01.23.45.67.89", "téléphone : [phone]"), ("тел. 8 495 123-45-67", "тел. [phone]"),
    ("電話：03-1234-5678", "電話：[phone]"), ("电话: 010-12345678", "电话: [phone]"),
    ("WhatsApp 0171 2345678", "WhatsApp [phone]"), ("ĐT: 024 3825 5555", "ĐT: [phone]"),
    ("هاتف: 011 234 5678", "هاتف: [phone]"),
    ("Phone number 0171 2345678", "Phone number [phone]"),
]  # fmt: skip
KEYS = [
    "AKIAIOSFODNN7EXAMPLE", "ghp_" + A36, "github_pat_" + A36 * 2, "glpat-" + A36[:20], "sk-proj-" + A36 * 2,
    "sk-ant-api03-" + A36 * 2, "sk_live_" + A36[:24], "AIza" + A36[:35], "xoxb-1234567890-" + A36[:12],
    "hf_" + A36[:34],
    "npm_" + A36, "pypi-AgEIcHlwaS5vcmc" + A36 * 2, "SG." + A36[:22] + "." + (A36 * 2)[:43],
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0." + A36,
    "-----BEGIN RSA PRIVATE KEY-----\n" + "\n".join([A36 + A36[:28]] * 4) + "\nMIIE+/==\n-----END RSA PRIVATE KEY-----",
]  # fmt: skip
HARMLESS = [
    "On 2024-01-15 and 15.01.2024 at 12:30:45, or 2026-11-29T05:13:58.123456Z, the 15/01/2024",
    "Python 3.11.4, v1.2.3-rc4, 10.15.7 (19H2), 4.19.0-26-amd64, 1:7.4.7-1+deb12u14, 20230508+deb12u1",
    "ISBN 978-3-16-148410-0 and ISBN 0-306-40615-2, ISSN 2049-3630, DOI 10.1000/182, arXiv 2112.11446, RFC 7231",
    "In 1914-1918 and 1939–1945, pp. 1234-1256, 1,234,567 people, $1,234,567.89, 1 234 567 890 km, 1.618033988749895",
    "192.168.0.1:8080, 255.255.255.0, fe80::1, 00:1A:2B:3C:4D:5E, 0x7fff5fbff8c0, 550e8400-e29b-41d4-a716-446655440000",
    "write to root@localhost, see @anna and #42, f(x)@2, a@b, price@10.50, user@, git@github",
    "Postcode 10115, room 212-555, model XC90, flight LH 0400, DE 12345, No. 123456, hotel 5, telecom 1234567, 100-99",
    "The ratio 3.14159265358979 lies in (0, 1000000), 100 000 000 000 stars, 1e10, 2**64 = 18446744073709551616",
    "IBAN DE89 3704 0044 0532 0130 01 has a wrong checksum; GB82 WEST 1234 5698 7654 33 too; XX82 is no country",
    "task-based, disk-0123456789, risk-management, eyJ alone, hf_model, npm_config_cache, SG.1, AKIA, xox, sk-learn",
]


@pytest.mark.parametrize("email", EMAILS)
def test_addresses_are_masked(email: str) -> None:
    assert mask(f"Write to {email}, or <{email}>.") == ("Write to [email], or <[email]>.", {"email": 2})


@pytest.mark.parametrize("phone", PHONES)
def test_telephone_numbers_are_masked(phone: str) -> None:
    assert mask(f"Call {phone}, please.\n{phone}") == ("Call [phone], please.\n[phone]", {"phone": 2})


@pytest.mark.parametrize(("text", "masked"), CUED)
def test_numbers_behind_the_word_for_telephone_are_masked(text: str, masked: str) -> None:
    assert mask(f"{text}, nachmittags") == (f"{masked}, nachmittags", {"phone": 1})


@pytest.mark.parametrize("key", KEYS)
def test_keys_are_masked(key: str) -> None:
    assert mask(f'token = "{key}" # mine') == ('token = "[key]" # mine', {"key": 1})


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_personal_data_is_left_alone(text: str) -> None:
    assert mask(text) == (text, {})


def iban(country: str, body: str) -> str:
    rest = "".join(str(int(char, 36)) for char in f"{body}{country}00")
    return f"{country}{98 - int(rest) % 97:02d}{body}"


@st.composite
def ibans(draw: st.DrawFn) -> str:
    country = draw(st.sampled_from(sorted(IBAN_LENGTHS)))
    size = IBAN_LENGTHS[country] - 4
    return iban(country, draw(st.text(string.digits + string.ascii_uppercase, min_size=size, max_size=size)))


@given(ibans())
def test_ibans_of_all_countries_are_masked_in_both_spellings(number: str) -> None:
    in_fours = " ".join(number[start : start + 4] for start in range(0, len(number), 4))
    assert mask(f"Pay to {number} or {in_fours} today", ["iban"]) == ("Pay to [iban] or [iban] today", {"iban": 2})


@given(ibans(), st.integers(2, 33), st.integers(1, 9))
def test_an_iban_with_one_wrong_digit_is_none(number: str, place: int, other: int) -> None:
    place %= len(number)
    if number[place].isdigit():
        changed = number[:place] + str((int(number[place]) + other) % 10) + number[place + 1 :]
        assert not is_iban(changed)


def test_published_ibans_are_right() -> None:
    for number in (
        "DE89370400440532013000",
        "GB82WEST12345698765432",
        "FR1420041010050500013M02606",
        "NO9386011117947",
    ):
        assert is_iban(number)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_only_the_chosen_kinds_are_masked(kind: str) -> None:
    examples = {"email": EMAILS[0], "phone": PHONES[0], "iban": iban("DE", "1" * 18), "key": KEYS[0]}
    text = "\n".join(examples.values())
    expected = "\n".join(f"[{name}]" if name == kind else example for name, example in examples.items())
    assert mask(text, [kind]) == (expected, {kind: 1})  # type: ignore[list-item]
    assert mask(text, []) == (text, {})


def test_examples_in_a_report_are_masked_whatever_the_config() -> None:
    report = Report()
    text = f"{EMAILS[0]} {PHONES[0]} {KEYS[0]} {iban('DE', '1' * 18)}"
    report.drop("document: short", text, Document(language="en", source="s", page="p", text=text))
    assert report.as_json()["examples"]["document: short"] == [{"source": "s", "text": "[email] [phone] [key] [iban]"}]
