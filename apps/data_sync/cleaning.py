"""What is changed in the rows of customers on their way to the warehouse."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from apps.data_sync.rows import Customer

ADDRESS = re.compile(r"[^@\s]+@[^@\s]+")
NOT_DIGITS = re.compile(r"[^0-9]")
VISIBLE_DIGITS = 3


def clean_customer(customer: Customer) -> Customer:
    """The customer with a normalised e-mail address and a masked phone number."""
    return msgspec.structs.replace(
        customer, email=clean_email(customer.email), phone=mask_phone(customer.phone)
    )


def clean_email(email: str | None) -> str | None:
    """The address in lower case without spaces around it; ``None`` for what is no address."""
    if email is None:
        return None
    address = email.strip(" ").lower()
    return address if ADDRESS.fullmatch(address) else None


def mask_phone(phone: str | None) -> str | None:
    """The digits of the number, of which only the last three can be read: ``*******123``."""
    if phone is None:
        return None
    digits = NOT_DIGITS.sub("", phone)
    hidden = max(len(digits) - VISIBLE_DIGITS, 0)
    return "*" * hidden + digits[hidden:]
