"""Passwords in the URLs of a spec: given as `${VARIABLE}`, which stays so on disk, or not at all.

A results folder is shared and its report is published: what `spec.toml` and the provenance hold is no secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from study.errors import SpecError

# The URLs of a spec, by section and key.
URLS = (("tuning", "storage"), ("recording", "mlflow"))
_VARIABLE = re.compile(r"\$\{(\w+)\}")
# user:PASSWORD@ before a host, which may hold @ and /; and PASSWORD in a query.
_PASSWORD = re.compile(r"(//[^/@:\s]*:)([^\s]*)(?=@)|([?&][^=&\s]*(?:pass|pwd|token|secret)[^=&\s]*=)([^&\s]*)", re.I)


def mistakes(sections: Mapping[str, Any]) -> Iterator[str]:
    """One line for each URL of a spec with a password, which is not shown."""
    for section, key in URLS:
        url = getattr(sections.get(section), key, None) or ""
        if any(_VARIABLE.sub("", found[2] or found[4] or "") for found in _PASSWORD.finditer(url)):
            yield (
                f"{section}.{key}: has a password, which would be saved in the results; write ${{NAME}} instead, "
                f"and set the environment variable NAME"
            )


def expanded(key: str, url: str) -> str:
    """A URL of a spec with the values of its variables; a `SpecError` names one that is not set."""
    if missing := [name for name in _VARIABLE.findall(url) if name not in os.environ]:
        raise SpecError(key, f"names the environment variable {missing[0]}, which is not set; set it, then try again")
    return _VARIABLE.sub(lambda found: os.environ[found[1]], url)


def redacted(text: str) -> str:
    """A text without the passwords of URLs in it; variables stay."""
    return _PASSWORD.sub(lambda found: f"{found[1] or found[3]}{_hidden(found[2] or found[4] or '')}", text)


def _hidden(password: str) -> str:
    return password if not _VARIABLE.sub("", password) else "***"
