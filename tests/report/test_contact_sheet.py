"""The contact sheet: order by hand, pages that stand alone, bounded, inert, and sortable."""

from __future__ import annotations

import base64
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.stats import median_abs_deviation

from wsi.report.contact_sheet import (
    SlideCard,
    mpp_bins,
    natural,
    outlier_order,
    robust_z,
    write_contact_sheet,
)

NASTY = '<script>alert(1)</script>"onload=x'
BROWSER = shutil.which("chromium")


def done(slide_id: str, tiles: int = 100, share: float = 0.3, mpp: float = 0.25, **more):
    return SlideCard(slide_id, "done", tiles=tiles, tissue_share=share, mpp=(mpp, mpp), **more)


def order(cards: Sequence[SlideCard]) -> list[str]:
    return [item.card.slide_id for item in outlier_order(cards)]


def jpeg(path: Path, seed: int = 0, size: tuple[int, int] = (1000, 1000)) -> Path:
    """Write a picture that compresses badly, also where it is shrunk to a third."""
    coarse = max(1, size[1] // 3), max(1, size[0] // 3), 3
    noise = np.random.default_rng(seed).integers(0, 256, coarse, dtype=np.uint8)
    noise = np.asarray(cv2.resize(noise, size, interpolation=cv2.INTER_NEAREST))
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), noise)
    return path


# -- which slides come first -------------------------------------------------------------------


def test_robust_z_is_that_of_the_books() -> None:
    # median 3, deviations 2 1 0 1 97, their median 1
    np.testing.assert_allclose(
        robust_z([1, 2, 3, 4, 100]), np.array([-2, -1, 0, 1, 97]) / 1.4826, rtol=1e-12
    )
    values = np.random.default_rng(0).gamma(2.0, size=40)
    scale = median_abs_deviation(values, scale="normal")
    expected = (values - np.median(values)) / scale
    np.testing.assert_allclose(robust_z(list(values)), expected, rtol=1e-4)


def test_where_most_values_agree_the_mean_deviation_is_the_measure() -> None:
    # median 5, deviations 0 0 0 0 10: their median says nothing, their mean is 2
    expected = [0, 0, 0, 0, 10 / (1.2533 * 2)]
    np.testing.assert_allclose(robust_z([5, 5, 5, 5, 15]), expected, rtol=1e-12)


def test_what_is_unknown_or_never_varies_is_not_unusual() -> None:
    assert robust_z([2.0, 2.0, 2.0]).tolist() == [0, 0, 0]
    assert robust_z([None, None]).tolist() == [0, 0]
    assert robust_z([]).tolist() == []
    assert robust_z([None, 1.0, 3.0]).tolist()[0] == 0


def test_states_come_before_flags_and_flags_before_numbers() -> None:
    cards = [
        done("plain"),
        done("far", tiles=100_000),
        done("flagged", flags=("pen",)),
        SlideCard("waits", "waiting"),
        SlideCard("bare", "empty"),
        SlideCard("broken", "quarantined", "open-failed"),
    ]
    assert order(cards) == ["broken", "bare", "waits", "flagged", "far", "plain"]


def test_the_furthest_from_the_median_comes_first_on_whichever_measure() -> None:
    # log2 of tiles + 1 is 4 5 6 7 8, median 6 and deviations 2 1 0 1 2: z is 2/1.4826 at most.
    # Shares are .30 .31 .32 .33 and .52: median .32, deviations .02 .01 0 .01 .20, z .20/.01483.
    tiles = [15, 31, 63, 127, 255]
    shares = [0.30, 0.31, 0.32, 0.52, 0.33]
    cards = [done(f"s{k}", t, s) for k, (t, s) in enumerate(zip(tiles, shares, strict=True))]
    # s3 by its share; s0 and s4 have the same z of tiles, 2/1.4826, but s0's share is at 2/1.4826
    # too, so the tie is broken by id; s1 lies 1/1.4826 away, s2 nowhere.
    assert order(cards) == ["s3", "s0", "s4", "s1", "s2"]


def test_only_done_slides_say_what_is_usual() -> None:
    """Empty slides are many in a bad cohort, and do not make slides with tiles unusual."""
    cards = [done(f"d{k}", 100 + k) for k in range(9)]
    cards += [SlideCard(f"e{k}", "empty", tiles=0, tissue_share=0.0) for k in range(20)]
    assert not any(item.unusual for item in outlier_order(cards))


def test_a_measure_is_named_unusual_beyond_the_bound_and_in_a_cohort_large_enough() -> None:
    usual = [done(f"s{k}", 100 + k, mpp=0.25 + 0.001 * k) for k in range(7)]
    odd = done("odd", 3, mpp=0.5)
    first = outlier_order([*usual, odd])[0]
    assert first.card is odd
    assert {name for name, _ in first.unusual} == {"tile count", "mpp"}
    logs = [math.log1p(c.tiles or 0) for c in (*usual, odd)]
    z = abs(logs[-1] - np.median(logs)) / median_abs_deviation(logs, scale="normal")
    assert dict(first.unusual)["tile count"] == pytest.approx(z, rel=1e-3)
    assert not outlier_order([*usual[:6], odd])[0].unusual


def test_ties_are_ordered_as_people_count() -> None:
    assert order([done("s10"), done("s2"), done("S1")]) == ["S1", "s2", "s10"]
    names = ["b", "a10b2", "a10b10", "a9", "a", "٣", "²"]  # digits of other kinds are letters
    assert sorted(names, key=natural)[:5] == ["a", "a9", "a10b2", "a10b10", "b"]


def test_resolutions_within_two_percent_are_one_bin_of_a_site() -> None:
    cards = [
        *(done(f"a{k}", mpp=m, site="a") for k, m in enumerate([0.2425, 0.2268, 0.2430, 0.2426])),
        done("b", mpp=1.0, site="b"),
        SlideCard("x", "quarantined", site="a"),
    ]
    assert mpp_bins(cards) == {
        "a": [("0.2268", 1), ("0.2425-0.243", 3)],
        "b": [("1", 1)],
    }


def test_a_slide_without_a_site_or_a_resolution_is_told_as_that(tmp_path: Path, parsed) -> None:
    cards = [
        done("a", mpp=0.499),
        done("b", mpp=0.5),
        done("c", mpp=0.25, site="north"),
        SlideCard("bare", "quarantined", "no-mpp", size0=(100, 100)),
        SlideCard("unopened", "quarantined", "open-failed"),
    ]
    text = write_contact_sheet(tmp_path, cards)[0].read_text(encoding="utf-8")
    said = re.sub(r"\s+", " ", " ".join(parsed(text).words))
    assert "no site 0.499-0.5 2 north 0.25 1 1 without a resolution." in said


# -- the page ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sheet")
    picture = jpeg(folder / "thumbnails" / "a b#1.jpg")
    (folder / "thumbnails" / "cut.jpg").write_bytes(picture.read_bytes()[:200])
    cards = [
        done(
            "site-a/x",
            1234,
            0.25,
            considered=4000,
            left_out=7,
            tissue_mm2=12.345,
            mpp_source="openslide",
            vendor="aperio",
            reader="tiff",
            site="site-a",
            size0=(20_000, 10_000),
            picture=picture,
            link="thumbnails/a b#1.jpg",
            flags=("pen", "assumed mpp"),
        ),
        done("damaged", picture=folder / "thumbnails" / "cut.jpg", link="thumbnails/cut.jpg"),
        done("gone", picture=folder / "thumbnails" / "none.jpg", link="thumbnails/none.jpg"),
        SlideCard(NASTY, "quarantined", NASTY, NASTY, site=NASTY, vendor=NASTY, flags=(NASTY,)),
        SlideCard("glass", "empty", tiles=0, tissue_share=0.0),
    ]
    write_contact_sheet(folder, cards, {"tiles": NASTY})
    return folder / "report.html"


def test_the_page_is_whole_and_loads_nothing(sheet: Path, parsed) -> None:
    text = sheet.read_text(encoding="utf-8")
    page = parsed(text)
    assert page.open == []
    assert not page.all("link")
    assert not re.search(r"https?://|@import|url\(", text)
    assert {i["src"].partition(",")[0] for i in page.all("img")} == {"data:image/jpeg;base64"}
    assert [a["href"] for a in page.all("a")] == ["thumbnails/a%20b%231.jpg"]
    (policy,) = (m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert "default-src 'none'" in policy
    assert all(image["alt"].strip() for image in page.all("img"))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.elements:
        assert attrs.get("aria-labelledby", ids[0]) in ids


def test_markup_in_names_comes_out_inert(sheet: Path, parsed) -> None:
    text = sheet.read_text(encoding="utf-8")
    page = parsed(text)
    assert len(page.all("script")) == 1
    words = "".join(page.words)
    assert words.count(NASTY) >= 6
    assert not any("onload" in attrs for _, attrs in page.elements)
    assert NASTY in {attrs.get("data-id") for attrs in page.all("li")}
    assert NASTY in {attrs.get("data-chip") for attrs in page.all("li")}


def test_a_card_says_what_is_known(sheet: Path, parsed) -> None:
    words = " ".join(parsed(sheet.read_text(encoding="utf-8")).words)
    said = re.sub(r"\s+", " ", words)
    for fact in (
        "site-a/x pen assumed mpp",
        "tiles 1,234 of 4,000 , 7 left out",
        "tissue 12.3 mm², 25.0 %",
        "mpp 0.25 (openslide)",
        "size 20,000 × 10,000 px",
        "format aperio (tiff reader)",
        "site site-a",
        "glass empty tiles 0 tissue 0.0 % mpp unknown",
    ):
        assert fact in said, fact
    assert "5 slides" in said
    assert "3 done 1 empty 1 quarantined 1,434 tiles 12.3 mm² tissue" in said
    assert said.count("no picture") == 4  # damaged, gone, quarantined and empty


@pytest.mark.parametrize("size", [(1000, 1000), (1000, 80), (60, 1000), (200, 150)])
def test_a_card_of_noise_stays_below_forty_kilobytes(
    tmp_path: Path, parsed, size: tuple[int, int]
) -> None:
    picture = jpeg(tmp_path / "n.jpg", size=size)
    cards = [done(f"s{k}", picture=picture, link="n.jpg") for k in range(12)]
    one = write_contact_sheet(tmp_path, cards[:2])[0].stat().st_size
    all_of_them = write_contact_sheet(tmp_path, cards)[0]
    assert (all_of_them.stat().st_size - one) / 10 < 40_000
    uri = parsed(all_of_them.read_text(encoding="utf-8")).all("img")[0]["src"]
    data = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    shown = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert shown is not None
    h, w = shown.shape[:2]
    assert 100 < max(h, w) <= 320
    assert w / h == pytest.approx(size[0] / size[1], rel=0.1)


def test_pages_share_one_order_and_leave_no_stale_page(tmp_path: Path, parsed) -> None:
    cards = [done(f"s{k:04}") for k in range(1040)]
    cards += [SlideCard(f"q{k}", "quarantined", "no-mpp") for k in range(10)]
    pages = write_contact_sheet(tmp_path, cards)
    assert [p.name for p in pages] == ["report.html", "report-2.html", "report-3.html"]
    read = [parsed(p.read_text(encoding="utf-8")) for p in pages]
    shown = [[a["data-id"] for a in page.all("li") if "data-id" in a] for page in read]
    assert [len(ids) for ids in shown] == [500, 500, 50]
    assert shown[0][:11] == [*(f"q{k}" for k in range(10)), "s0000"]
    assert [i for ids in shown for i in ids] == [
        *(f"q{k}" for k in range(10)),
        *(f"s{k:04}" for k in range(1040)),
    ]
    for page in read:
        assert {a["href"] for a in page.all("a")} < {p.name for p in pages}
        assert "".join(page.words).count("1,050 slides") == 1
    others = [tmp_path / n for n in ("report-x.html", "my-report-2.html", "report-9.html")]
    for path in others:
        path.write_text("kept")
    assert write_contact_sheet(tmp_path, cards[:600]) == pages[:2]
    assert not pages[2].exists()
    assert write_contact_sheet(tmp_path, []) == pages[:1]
    assert not pages[1].exists()
    assert [path.read_text() for path in others] == ["kept"] * 3


# -- in a browser ------------------------------------------------------------------------------


@pytest.mark.slow  # starts a browser
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_browser_sorts_and_filters(tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    cards = [
        done("s2", 5, 0.5, 0.25, flags=("pen",), vendor="aperio"),
        done("s10", 50, 0.1, 0.5, vendor="philips"),
        done("s1", 20, 0.2, 1.0, flags=("pen", "blur")),
        SlideCard("bad", "quarantined", "no-mpp", "nothing says how large a pixel is"),
    ]
    path = write_contact_sheet(tmp_path, cards)[0]
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.goto(path.as_uri())

        def shown() -> list[str]:
            return page.locator("#cards > li:visible h3").all_text_contents()

        assert shown() == order(cards)
        by = {
            "tiles": ["s10", "s1", "s2", "bad"],  # many first; unknown last
            "tissue": ["s2", "s1", "s10", "bad"],
            "mpp": ["s2", "s10", "s1", "bad"],
            "id": ["bad", "s1", "s2", "s10"],
            "flags": ["s1", "s2", *(i for i in order(cards) if i in ("bad", "s10"))],
        }
        for key, expected in by.items():
            page.select_option("#sort", key)
            assert shown() == expected, key
        page.select_option("#sort", "tiles")
        page.focus("#turn")
        page.keyboard.press("Enter")  # reachable without a mouse
        assert shown() == ["s2", "s1", "s10", "bad"]
        page.select_option("#flag", "pen")
        assert shown() == ["s2", "s1"]
        assert page.inner_text("#count") == "2 of 4 shown"
        page.fill("#text", "APERIO")
        assert shown() == ["s2"]
        page.click("#clear")
        assert shown() == order(cards)
        page.select_option("#state", "quarantined")
        assert shown() == ["bad"]
        page.select_option("#state", "")
        page.fill("#text", "how large pixel")
        assert shown() == ["bad"]
        assert problems == []

        plain = browser.new_context(java_script_enabled=False).new_page()
        plain.goto(path.as_uri())
        assert plain.locator("#cards > li:visible h3").all_text_contents() == order(cards)
        assert not plain.locator("#controls").is_visible()
        browser.close()


def test_a_page_that_would_be_the_same_is_left_alone(tmp_path: Path) -> None:
    picture = tmp_path / "a.jpg"
    Image.new("RGB", (40, 30), "pink").save(picture)
    cards = [SlideCard("a", "done", picture=picture, tiles=3), SlideCard("b", "empty")]
    (page,) = write_contact_sheet(tmp_path, cards)
    before, text = page.stat().st_mtime_ns, page.read_text()
    write_contact_sheet(tmp_path, cards)
    assert page.stat().st_mtime_ns == before
    Image.new("RGB", (40, 30), "navy").save(picture)  # the same name and card, another picture
    write_contact_sheet(tmp_path, cards)
    assert page.read_text() != text
    redrawn = page.read_text()
    write_contact_sheet(tmp_path, [replace(cards[0], tiles=4), cards[1]])
    assert page.read_text() != redrawn
