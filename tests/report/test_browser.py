"""The page as a browser shows it: opened from disk, with the network off."""

import base64
import contextlib
import dataclasses
import io
import shutil
from pathlib import Path

import psutil
import pytest
from PIL import Image

from optsd import report

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium"),
    pytest.mark.skipif(DRIVER is None, reason="needs its driver: apt-get install chromium-driver"),
]


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # Without motion: a page that is still gliding to what was clicked is somewhere else than what was measured.
    still = "--force-prefers-reduced-motion"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", still):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, written):
    """The page as it is when it is opened, at the width of a desk."""
    set_width(browser, 1280)
    browser.get((written / "index.html").as_uri())
    browser.execute_script("localStorage.clear()")
    yield browser
    assert browser.get_log("browser") == []


def set_width(browser, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def find(browser, selector: str):
    return browser.find_element(By.CSS_SELECTOR, selector)


def column(browser, number: int) -> list[str]:
    """The cells of one column of the figures, top to bottom."""
    script = (
        "return [...document.querySelectorAll('#figures tbody tr')].map(row => row.cells[arguments[0]].dataset.sort)"
    )
    return browser.execute_script(script, number)


def shown(browser, selector: str) -> int:
    script = "return [...document.querySelectorAll(arguments[0])].filter(e => e.getClientRects().length).length"
    return browser.execute_script(script, selector)


def click(browser, selector: str) -> None:
    """As a pointer would, wherever the page is scrolled to."""
    browser.execute_script("arguments[0].click()", find(browser, selector))


def photograph(browser, selector: str) -> Image.Image:
    """What is painted inside an element, once all of its pictures are decoded and two frames have gone by.

    From where the page stands: scrolling to it first, as WebDriver's own screenshot does, is a race with the scroll.
    """
    script = """
        const [element, done] = arguments, frame = () => new Promise(requestAnimationFrame);
        Promise.all([...element.querySelectorAll('img[src]')].map(image => image.decode())).then(frame).then(frame)
            .then(() => { const box = element.getBoundingClientRect();
                          done({x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height}); });"""
    box = browser.execute_async_script(script, find(browser, selector))
    taken = {"captureBeyondViewport": True, "clip": {**box, "scale": 1}}
    png = browser.execute_cdp_cmd("Page.captureScreenshot", taken)["data"]
    return Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")


def test_nothing_glides_while_it_is_photographed(opened):
    """The other tests' places and pictures hold at once only because this browser asks for no motion."""
    assert find(opened, "html").value_of_css_property("scroll-behavior") == "auto"
    assert opened.execute_script("scrollTo(0, 500); return scrollY") == 500


def test_it_asks_nothing_of_the_network(opened):
    script = "return performance.getEntriesByType('resource').map(entry => entry.name.slice(0, 5))"
    assert set(opened.execute_script(script)) <= {"data:"}


def test_the_table_is_sorted_by_pointer_and_by_keyboard(opened):
    head = "#figures thead th:nth-child(3)"
    click(opened, f"{head} button")
    speeds = [float(cell) for cell in column(opened, 2)]
    assert speeds == sorted(speeds)
    assert find(opened, head).get_attribute("aria-sort") == "ascending"
    find(opened, f"{head} button").send_keys(Keys.ENTER)
    assert [float(cell) for cell in column(opened, 2)] == speeds[::-1]
    assert find(opened, head).get_attribute("aria-sort") == "descending"


def test_what_was_not_measured_is_last_whichever_way_is_up(opened, results):
    labels = opened.execute_script("return [...document.querySelectorAll('#figures thead th')].map(h => h.innerText)")
    number = next(place for place, label in enumerate(labels) if label.startswith("LPIPS (shapes)"))
    for _ in range(2):
        click(opened, f"#figures thead th:nth-child({number + 1}) button")
        assert column(opened, number)[-1] is None
    assert column(opened, 0)[-1] == str(results.variants.index("baseline"))


def test_verdicts_are_filtered_by_status_and_by_text(opened, results):
    click(opened, "#claim-filter [data-status='missed']")
    missed = [row for row in results.verdicts if row.status == "missed"]
    assert shown(opened, "#verdicts tbody tr") == len(missed) > 0
    find(opened, "#claim-search").send_keys(missed[0].variant)
    assert 0 < shown(opened, "#verdicts tbody tr") < len(missed)
    assert find(opened, "#claim-count").text.endswith(f"of {len(results.verdicts)} shown")


def test_a_variant_that_is_filtered_out_leaves_tables_plots_and_pictures(opened, results):
    number = results.variants.index("int8")
    rows, faded = f"#figures tr[data-variant='{number}']", f".plot .point.off[data-variant='{number}']"
    assert (shown(opened, rows), shown(opened, faded)) == (1, 0)
    find(opened, "#filter summary").click()
    find(opened, f"[data-toggle='{number}']").send_keys(Keys.SPACE)
    assert shown(opened, rows) == 0
    assert shown(opened, faded) > 5  # they stay, faded, so that the plot does not change its shape
    assert shown(opened, f".contact tr[data-variant='{number}']") == 0
    find(opened, "#variant-search").send_keys("int4")
    assert find(opened, "#shown-count").text == "2 of 11"
    assert shown(opened, "#figures tbody tr") == 2
    find(opened, "#all-variants").click()
    assert shown(opened, "#figures tbody tr") == len(results.variants)


def test_the_slider_moves_by_keyboard_and_shows_another_pair(opened, results):
    slider = find(opened, "#slider")
    before = find(opened, "#stage .mine").value_of_css_property("clip-path")
    slider.send_keys(Keys.ARROW_RIGHT * 10)
    assert slider.get_attribute("value") == "60"
    assert find(opened, "#stage .mine").value_of_css_property("clip-path") != before
    source = find(opened, "#picture-mine").get_attribute("src")
    Select(find(opened, "#picture-variant")).select_by_visible_text("int4")
    assert find(opened, "#picture-mine").get_attribute("src") != source
    assert find(opened, "#picture-mine").get_attribute("alt").startswith("int4: a large")
    assert "int4 against the baseline: LPIPS (shapes)" in find(opened, "#picture-caption").text


def test_the_difference_of_equal_pictures_is_black(opened):
    """The baseline's picture and one of an exact technique are the same file here: their difference has no light."""
    Select(find(opened, "#picture-variant")).select_by_visible_text("flash")
    click(opened, "[data-mode='difference']:not(.stage)")
    assert find(opened, "#stage").value_of_css_property("filter") == "brightness(8)"
    picture = photograph(opened, "#stage")
    middle = picture.crop((20, 20, picture.width - 20, picture.height - 20))  # its corners are round
    assert max(high for _, high in middle.getextrema()) <= 8


def test_the_difference_of_unequal_pictures_is_bright(opened):
    """The photograph is of the two pictures: where INT4 has moved an edge, it is not black."""
    Select(find(opened, "#picture-variant")).select_by_visible_text("int4")
    click(opened, "[data-mode='difference']:not(.stage)")
    assert max(high for _, high in photograph(opened, "#stage").getextrema()) == 255


def test_a_thumbnail_opens_its_pair(opened, results):
    number = results.variants.index("int8+flash")
    click(opened, f".contact [data-picture='{number}/2']")
    assert find(opened, "#picture-tag").text == "int8+flash"
    assert find(opened, "#picture-prompt").get_attribute("value") == "2"


def test_the_theme_follows_the_choice(opened):
    colours = {}
    for name in ("Light", "Dark"):
        Select(find(opened, "#theme")).select_by_visible_text(name)
        colours[name] = find(opened, "body").value_of_css_property("background-color")
    assert colours["Light"] == "rgba(245, 246, 248, 1)"
    assert colours["Dark"] == "rgba(17, 20, 24, 1)"
    ink = find(opened, ".plot text").value_of_css_property("fill")
    assert ink == "rgb(232, 234, 237)"


def test_a_mark_says_what_it_is_when_the_focus_is_on_it(opened, results):
    opened.execute_script("document.querySelector('.point[data-variant=\"2\"]').focus()")
    assert find(opened, "#tip").text.startswith("int8: speedup ")
    find(opened, "body").send_keys(Keys.ESCAPE)
    assert not find(opened, "#tip").is_displayed()


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_shows_it_without_scrolling_sideways(opened, width):
    set_width(opened, width)
    assert opened.execute_script("return document.documentElement.scrollWidth") == width


def test_text_from_the_results_runs_nothing(browser, results, tmp_path):
    name = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [dataclasses.replace(results.get("int8", "speedup"), variant=name)]
    image = {"variant": name, "prompt": name, "seed": 1, "index": 0, "file": "a.png"}
    report.write(dataclasses.replace(results, measurements=tuple(rows), images=(image,), command=name), tmp_path)
    browser.get((tmp_path / "index.html").as_uri())
    assert name in find(browser, "#picture-variant").text
    assert name in find(browser, "#picture-caption").text
    assert shown(browser, "img[src='x']") == 0
    assert browser.get_log("browser") == []


@pytest.mark.whole
def test_fifty_variants_and_a_thousand_prompts_open_at_the_price_of_their_size(
    browser, written, make_results, tmp_path
):
    variants = ("baseline", *(f"int8+tome:{number}" for number in range(49)))
    many = make_results(variants=variants, prompts=1000)
    for number in range(8):
        Image.effect_noise((64, 64), 30 + number).convert("RGB").save(tmp_path / f"{number}.png")
    images = tuple(
        {
            "variant": variant,
            "prompt": f"prompt {number} " * 8,
            "seed": 42,
            "index": number,
            "file": f"{number % 8}.png",
        }
        for variant in variants
        for number in range(1000)
    )
    report.write(dataclasses.replace(many, images=images), tmp_path)
    page, usual = tmp_path / "index.html", written / "index.html"
    assert page.stat().st_size < 10_000_000
    set_width(browser, 1280)
    # A machine's speed, and whoever else is on it, slow both alike; the first opening of all warms the browser up.
    processor_seconds_of(browser, usual)
    seconds = [(processor_seconds_of(browser, page), processor_seconds_of(browser, usual)) for _ in range(3)]
    assert shown(browser, "#figures tbody tr") == 11
    larger = page.stat().st_size / usual.stat().st_size  # 7 times; it is opened in about twice the time
    assert min(mine for mine, _ in seconds) < larger * min(other for _, other in seconds)
    assert browser.get_log("browser") == []


def processor_seconds_of(browser, page: Path) -> float:
    """What opening a page costs all of the browser's processes, until its table is there."""
    browser.get("about:blank")
    before = processor_seconds(browser)
    browser.get(page.as_uri())
    assert shown(browser, "#figures tbody tr") in (11, 50)
    return sum(time - before.get(number, 0) for number, time in processor_seconds(browser).items())


def processor_seconds(browser) -> dict[int, float]:
    """Of each of the browser's processes, which come and go from page to page."""
    found = {}
    for process in psutil.Process(browser.service.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process.pid] = sum(process.cpu_times()[:2])
    return found
