"""HTML from the templates beside this file: reports as one page, and what the WebUIs show. All text is escaped."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..wording import SIGNS

if TYPE_CHECKING:
    from jinja2 import Environment


def rendered(template: str, /, **values: Any) -> str:
    """Return a template, filled in. ``signs`` is known in each of them.

    Args:
        template: name of a file in ``templates``.
        values: what the template names; one that is missing is an error.

    """
    return _environment().get_template(template).render(values).strip()


@lru_cache(maxsize=1)
def _environment() -> Environment:
    import jinja2  # comes with torch; most commands write no HTML

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["signs"] = SIGNS
    return found
