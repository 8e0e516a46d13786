"""Texts of attributes."""

from __future__ import annotations

from recloop.features.value_text import display_name


def test_display_name_fills_the_template_and_drops_missing_parts() -> None:
    row = {"product_type": "COLA", "package_size": "2 LTR", "count": 3, "empty": ""}
    assert display_name("{product_type}, {package_size}", row, "7") == "COLA, 2 LTR"
    assert display_name("{product_type}, {package_size}", {"package_size": "2 LTR"}, "7") == "2 LTR"
    assert display_name("{product_type}, {package_size}", {"product_type": "COLA"}, "7") == "COLA"
    assert display_name("{product_type} ({count})", row, "7") == "COLA (3)"
    assert display_name("{product_type} ({count})", {"product_type": "COLA"}, "7") == "COLA"
    assert display_name("{product_type}", {}, "7") == "7"
    assert display_name("product_type", row, "7") == "COLA"
    assert display_name("empty", row, "7") == "7"
    assert display_name("count", row, "7") == "3"
    assert display_name("", row, "7") == "7"
