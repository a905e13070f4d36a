import base64
import gzip
import hashlib
import html
import json
import re

from launch.report.page import STYLES, pack, render_page

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>{{data}}\u2028&amp;"


def test_no_text_of_the_data_becomes_html():
    page = render_page(pack({"title": HOSTILE}), HOSTILE)
    assert HOSTILE not in page
    assert "<img" not in page
    assert f"<title>{html.escape(HOSTILE)}</title>" in page
    packed = re.search(r'id="packed">([^<]*)</script>', page)[1]
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", packed)
    assert json.loads(gzip.decompress(base64.b64decode(packed))) == {"title": HOSTILE}


def test_the_policy_allows_exactly_the_scripts_and_styles_of_the_page():
    page = render_page(b"x", "title")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    for tag in ("script", "style"):
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts}
        directive = next(part for part in policy.split("; ") if part.startswith(f"{tag}-src"))
        assert set(re.findall(r"'sha256-([^']*)'", directive)) == hashes
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_page_names_no_other_address():
    page = render_page(b"", "title")
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", page))
    # A namespace, and the licence's line of uPlot: neither is fetched.
    assert addresses == {"http://www.w3.org/2000/svg", "https://github.com/leeoniya/uPlot"}
    assert not re.search(r"<(link|iframe|object|embed|img)\b", page)
    assert len(STYLES) == 2


def test_code_stays_within_its_budget():
    assert len(render_page(b"", "").encode()) < 250_000


def test_texts_that_are_not_utf_8_and_deep_values_are_packed(tmp_path):
    deep = value = []
    for _ in range(900):
        value.append([])
        value = value[0]
    data = json.loads(gzip.decompress(pack({"label": "a\ud800", "deep": deep})))
    assert data["label"] == "a\ud800"
    assert data["deep"]
    assert "<title>a?</title>" in render_page(b"", "a\ud800")


def test_numbers_that_are_no_json_become_null():
    assert json.loads(gzip.decompress(pack({"a": [float("nan"), float("-inf"), 1.5], 3: "x"}))) == {
        "a": [None, None, 1.5],
        "3": "x",
    }
