"""The documentation site, built once and opened page by page in a browser: nothing is broken, nothing comes from elsewhere, figures are drawn."""
import functools
import http.server
import importlib.metadata
import os
import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

from poseprojects.site import build_site, gather, symbols
from poseprojects.storage import InputError, project_root

ROOT = project_root()
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync "
         "--use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader").split() + ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"] # no other host answers
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]


# ---------------------------------------------------------------- what is looked for

class Page(HTMLParser):
    "What a page can be pointed at by, and what it points to."
    def __init__(self, text):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        self.links += [found[key] for key in ("href", "src") if found.get(key) is not None]


def files(site): return {p.relative_to(site).as_posix(): p for p in sorted(site.rglob("*")) if p.is_file()}


def pages(site): return [name for name in files(site) if name.endswith(".html") and not name.startswith("_static/")]


def opened(site):
    "The pages that are looked at in the browser: all, but of those that a program makes all alike only some: of names and sources one in twelve, of tables one in three."
    alike = {kind: [name for name in pages(site) if name.startswith(kind)] for kind in (("api/", "source/"), ("tables/",))}
    return sorted({*pages(site)}.difference(*alike.values()) | {*alike["api/", "source/"][::12], *alike["tables/",][::3]})


def broken_links(site):
    "Every link to a file or an anchor of the site that is not there."
    known = files(site)
    read = {name: Page(known[name].read_text(encoding="utf-8")) for name in pages(site)}
    wrong = []
    for name, page in read.items():
        for link in page.links:
            if urlsplit(link).scheme or link.startswith("//"): continue
            target, fragment = urldefrag(urljoin(name, link) if link and not link.startswith("#") else name + link)
            target = unquote(urlsplit(target).path)
            if target not in known: wrong.append(f"{name}: {link} is not there")
            elif fragment and target in read and unquote(fragment) not in read[target].ids: wrong.append(f"{name}: {link} has no such anchor")
    return wrong


EMPTY = """() => [...document.querySelectorAll('.plotly-figure')].map(spot => {
    const plot = spot.querySelector('.js-plotly-plot');
    if (!plot) return 'a figure is not drawn';
    const box = plot.getBoundingClientRect();
    if (box.width < 50 || box.height < 50) return `a figure is ${box.width} by ${box.height} pixels`;
    const marks = plot.querySelectorAll('.cartesianlayer .trace path, .cartesianlayer .bars path, .cartesianlayer image, .pielayer path').length;
    if (!marks && !(plot._fullLayout._subplots.gl3d || []).some(id => Object.keys(plot._fullLayout[id]._scene?.traces || {}).length)) return 'a figure is empty';
    return ''; }).filter(Boolean)"""
READY = """() => [...document.querySelectorAll('.plotly-figure')].every(spot => spot.querySelector('.js-plotly-plot')?._fullLayout)"""
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
TELEPHONE = 390 # pixels


class Server:
    "A site on this machine."
    def __init__(self, site):
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *arguments): pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def __enter__(self): return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def visited(browser, site, names, patience=15):
    "Opens pages and says what is wrong with them."
    from playwright.sync_api import TimeoutError as PlaywrightTimeout
    wrong = []
    with Server(site) as server:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page, now = context.new_page(), [""]
        say = lambda text: wrong.append(f"{now[0]}: {text}")
        page.on("console", lambda message: say(f"console error: {message.text}") if message.type == "error" else None)
        page.on("pageerror", lambda error: say(f"page error: {error}"))
        page.on("requestfailed", lambda request: say(f"failed request: {request.url} ({request.failure})") if request.failure != "net::ERR_ABORTED" else None) # aborted: by the next page, or below
        page.on("response", lambda response: say(f"status {response.status}: {response.url}") if response.status >= 400 else None)

        # not by page.route, which switches the browser's cache off: every page would load everything again
        page.on("request", lambda request: say(f"asks another host: {request.url}") if not request.url.startswith((server.url, "data:", "blob:")) else None)
        for k, now[0] in enumerate(names):
            page.goto(server.url + now[0], wait_until="load")
            try: page.wait_for_function(READY, timeout=1000 * patience)
            except PlaywrightTimeout: pass # what follows says which figure
            for problem in page.evaluate(EMPTY): say(problem)
            for width in (1280, TELEPHONE) if k % 2 == 0 or not now[0].startswith(("api/", "source/")) else (1280,): # as in `opened`
                page.set_viewport_size({"width": width, "height": 900})
                try: page.wait_for_function(f"{WIDER} <= 0", timeout=2000) # figures need a moment to take the new width
                except PlaywrightTimeout: say(f"{page.evaluate(WIDER)} pixels wider than {width}")
        context.close()
    return wrong


# ---------------------------------------------------------------- the site and the browser

before = {}


def installed(): return importlib.metadata.distribution("poseprojects").read_text("direct_url.json")


def notebooks(): return sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "nbs").rglob("*"))


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    before.update(installed=installed(), notebooks=notebooks())
    folder = tmp_path_factory.mktemp("site") / "html"
    build_site(folder)
    return folder


@pytest.fixture(scope="session")
def browser():
    message = "the site is not opened in a browser: no chromium found; install Debian's package with apt-get install chromium"
    if CHROMIUM is None and os.environ.get("POSEPROJECTS_REQUIRE_BROWSER"): pytest.fail(message)
    if CHROMIUM is None: pytest.skip(message)
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def small(site, tmp_path):
    "A copy of one page with a figure, to break."
    for name in ("_static", "view"): shutil.copytree(site / name, tmp_path / name)
    for name in pages(tmp_path): # only what stands in this piece of the site
        if name != "view/player.html": (tmp_path / name).unlink()
    text = (tmp_path / "view" / "player.html").read_text(encoding="utf-8")
    text = re.sub(r'<a\b[^>]*href="(?!#)[^"]*"', '<a href="#"', text)
    text = re.sub(r'<link[^>]*rel="(?:index|search|next|prev)"[^>]*>|<form.*?</form>', "", text, flags=re.S).replace('href="#"', 'href="#main-content"')
    text = re.sub(r'<script[^>]*src="[^"]*searchindex[^"]*"[^>]*></script>', "", text)
    first, *others = re.findall(r'<div class="plotly-figure">.*?</noscript>\s*</div>', text, re.S)
    for figure in others: text = text.replace(figure, "") # one is enough, and quicker
    (tmp_path / "view" / "player.html").write_text(text, encoding="utf-8")
    return tmp_path


def changed(site, old, new, name="view/player.html"):
    text = (site / name).read_text(encoding="utf-8")
    assert old in text
    (site / name).write_text(text.replace(old, new, 1), encoding="utf-8")


# ---------------------------------------------------------------- without a browser

def test_one_process_builds_the_site(request):
    "pytest 9.2 gives names that pytest-xdist 3.8 cannot group: every process would build a site of its own, and nobody would notice but the clock."
    if os.environ.get("PYTEST_XDIST_WORKER") and request.config.option.loadgroup: assert request.node.nodeid.endswith("@site"), "pytest and pytest-xdist do not go together, expected the pins of constraints.txt"


def test_no_link_is_broken(site): assert broken_links(site) == []


def test_a_broken_link_and_a_broken_anchor_are_noticed(small):
    assert broken_links(small) == []
    changed(small, "</body>", '<a href="nowhere.html">x</a><a href="player.html#nothing">y</a><img src="gone.png"></body>')
    assert [w.split(": ")[1] for w in broken_links(small)] == ["nowhere.html is not there", "player.html#nothing has no such anchor", "gone.png is not there"]


def test_every_notebook_is_a_page_and_is_found_by_its_section(site):
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        name = path.relative_to(ROOT / "nbs").with_suffix("").as_posix()
        if any(part.startswith((".", "_")) for part in name.split("/")): continue
        title = re.search(r'# (.+?)\\n', path.read_text(encoding="utf-8"))[1]
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        assert re.search("<h1>.+?<", text) and "<title>" in text, f"{name} has no title ({title})"
        if name != "index": assert any(f'href="{prefix}{name}.html' in (site / section).read_text(encoding="utf-8") for section in pages(site) if section.endswith("/index.html") for prefix in ("", "../")) or \
            any(f'href="{Path(name).name}.html' in (site / section).read_text(encoding="utf-8") for section in pages(site) if section == f"{Path(name).parent.as_posix()}/index.html"), f"no section leads to {name}"


MODULES = {p.relative_to(ROOT / "poseprojects").with_suffix("").as_posix().replace("/", "."): p for p in sorted((ROOT / "poseprojects").rglob("*.py")) if not p.name.startswith("_")}


@pytest.mark.parametrize("module", MODULES)
def test_every_exported_name_is_shown_with_its_source(site, module):
    text = (site / "api" / f"{module}.html").read_text(encoding="utf-8")
    source = (site / "source" / f"{module}.html").read_text(encoding="utf-8")
    lines = MODULES[module].read_text(encoding="utf-8").splitlines()
    parts = re.split(r'(?=<section id="[^"]*">\s*(?:<span id="[^"]*"></span>\s*)*<h2>)', text)
    exported = symbols(module, "\n".join(lines))
    assert exported or module in ("data", "papers", "train", "results", "view"), f"{module} exports nothing"
    for symbol in exported:
        part = next((p for p in parts if re.search(rf"<h2>{re.escape(symbol.name)}<", p) and f'id="{symbol.label}"' in p.replace("'", '"')), None)
        assert part, f"{symbol.name} has no entry with the target {symbol.label}"
        number = re.search(rf'href="\.\./source/{re.escape(module)}\.html#L-(\d+)"', part)
        assert number and f'id="L-{number[1]}"' in source
        assert symbol.name in "\n".join(lines[int(number[1]) - 1:symbol.last]), f"the link of {symbol.name} leads to another line"
        assert '<div class="highlight' in part, f"{symbol.name} has no signature"


@pytest.mark.parametrize("path", sorted((ROOT / "results" / "tables").glob("[mp]*.html")), ids=lambda p: p.stem)
def test_every_table_of_results_is_there_with_its_marks(site, path):
    text, original = (site / "tables" / path.name).read_text(encoding="utf-8"), path.read_text(encoding="utf-8")
    shown = text[text.index('<div class="results">'):]
    assert shown.count("<tr>") == original.count("<tr>")
    assert ("status needs" in shown) == (">needs data<" in original)
    assert shown.count('<td class="') + shown.count("<td>") == original.count('<td class="') + original.count("<td>")
    if path.stem.startswith("measured") and "<table" in original: assert "status measured" in shown
    assert path.stem in (site / "results" / "index.html").read_text(encoding="utf-8")


def test_every_equation_is_mathml(site):
    "No TeX is left in the text of a page."
    made = 0
    for name in pages(site):
        if name.startswith("source/"): continue
        text = re.sub(r"<(script|pre|code|math)\b.*?</\1>", "", (site / name).read_text(encoding="utf-8"), flags=re.S)
        assert not re.search(r"\$\s*<math|</math>[^<]{0,2}\$", (site / name).read_text(encoding="utf-8")), f"a dollar stands beside an equation in {name}"
        assert not re.search(r"\\(frac|lVert|theta|mathbb|sum|sqrt)\b", text), name
        made += (site / name).read_text(encoding="utf-8").count("<math ")
    assert made > 50


def test_pages_are_small_and_the_figures_share_one_library(site):
    assert [name for name in files(site) if "plotly" in name] == ["_static/plotly.min.js"]
    assert [f"{name}: {files(site)[name].stat().st_size:,}" for name in pages(site) if files(site)[name].stat().st_size > 1_500_000] == []


def test_building_leaves_the_installation_and_the_checkout_as_they_are(site):
    "nbdev's own command installs the package again, from the folder that it works in."
    assert before["installed"] == installed()
    assert before["notebooks"] == notebooks() and not (ROOT / "_proc").exists()


def test_a_link_to_nothing_stops_the_build(tmp_path):
    copy = tmp_path / "copy"
    for name in ("nbs", "poseprojects", "results", "data_recipes"): shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "runs"))
    for name in ("settings.ini", "LICENSE", "CITATION.cff", "README.md"): shutil.copy(ROOT / name, copy)
    (copy / "CONTRIBUTING.md").write_text("# Contributing\n\n[a page](nbs/not_written.ipynb)\n", encoding="utf-8")
    with pytest.raises(InputError, match="CONTRIBUTING.md: the link to nbs/not_written.ipynb"): gather(copy, tmp_path / "source")


# ---------------------------------------------------------------- in a browser

@pytest.mark.parametrize("part", range(5)) # each within the time that one test has
def test_every_page_opens_without_an_error(site, browser, part): assert visited(browser, site, opened(site)[part::5]) == []


@pytest.mark.parametrize("old, new, expected", [
    ("</body>", "<script>undefined_function()</script></body>", "page error"),
    ("</body>", "<script>console.error('a complaint')</script></body>", "console error: a complaint"),
    ("</body>", '<img src="gone.png"></body>', "status 404"),
    ("</body>", '<script src="https://cdn.example.org/a.js"></script></body>', "asks another host: https://cdn.example.org/a.js"),
    ("</body>", '<div class="plotly-figure" style="height:300px"><script type="application/json">{"data":[],"layout":{}}</script></div></body>', "a figure is empty"),
    ("</body>", '<div class="plotly-figure" style="height:300px"></div></body>', "a figure is not drawn"),
    ("</body>", '<div style="width:4000px">wide</div></body>', "pixels wider than 1280"),
    ("</body>", '<div style="width:600px">wide</div></body>', "pixels wider than 390"),
], ids=["script", "complaint", "missing", "elsewhere", "empty", "undrawn", "wide", "wide-on-a-telephone"])
def test_every_defect_is_noticed(small, browser, old, new, expected):
    changed(small, old, new)
    assert any(expected in problem for problem in visited(browser, small, ["view/player.html"], patience=4))


def test_the_piece_that_is_broken_above_is_sound(small, browser): assert visited(browser, small, ["view/player.html"]) == []


@pytest.fixture
def tab(site, browser):
    with Server(site) as server:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=server.url)
        context.add_init_script("if (!localStorage.getItem('mode')) { localStorage.setItem('mode', 'light'); localStorage.setItem('theme', 'light') }")
        yield context.new_page()
        context.close()


@pytest.mark.parametrize("query, expected", [("n_mpjpe", "api/metrics.html"), ("align_similarity", "api/metrics.html"), ("bounded norm", "papers/")])
def test_search_finds(tab, query, expected):
    tab.goto(f"search.html?q={query}")
    tab.wait_for_selector("#search-results li a", timeout=15000)
    tab.wait_for_function("!document.querySelector('#search-progress') || document.querySelectorAll('#search-results li a').length > 0")
    assert any(expected in link.get_attribute("href") for link in tab.query_selector_all("#search-results li a"))


def test_search_does_not_find_what_is_not_there(tab):
    tab.goto("search.html?q=zyzzogeton")
    tab.wait_for_function("document.querySelector('#search-results .search-summary')?.textContent.includes('did not match')")
    assert tab.query_selector_all("#search-results li a") == []


FIGURE = "document.querySelector('.js-plotly-plot')"


def test_the_theme_changes_page_and_figures_and_back(tab):
    tab.goto("view/player.html")
    tab.wait_for_function(READY)
    look = lambda: tab.evaluate(f"[getComputedStyle(document.body).backgroundColor, {FIGURE}._fullLayout.font.color, {FIGURE}.data[1].line.color, getComputedStyle({FIGURE}.closest('.text_html')).backgroundColor]")
    light = look()
    button = tab.locator(".theme-switch-button:visible").first
    seen = [light]
    for _ in range(3):
        button.click()
        tab.wait_for_timeout(400)
        seen.append(look())
    theme = tab.evaluate("document.documentElement.dataset.theme")
    dark = next(s for s in seen if s[0] != light[0])
    assert all(a != b for a, b in zip(dark[:3], light[:3])), (light, dark)
    assert dark[3] == "rgba(0, 0, 0, 0)", "the ground behind a figure is the page's"
    assert theme in ("light", "dark") and light in seen[1:], "the third choice brings the first look back"


def test_the_player_plays_and_turns(tab):
    tab.goto("view/player.html")
    tab.wait_for_function(READY)
    tab.evaluate(f"{FIGURE}.scrollIntoView({{block: 'center'}})")
    coordinates = lambda: tab.evaluate(f"JSON.stringify({FIGURE}.data[1].x)")
    first = coordinates()
    tab.locator(".js-plotly-plot").first.locator(".updatemenu-button").first.click()
    tab.wait_for_function(f"JSON.stringify({FIGURE}.data[1].x) !== {first!r}", timeout=15000)
    eye = f"JSON.stringify({FIGURE}._fullLayout.scene._scene.getCamera().eye)"
    before, box = tab.evaluate(eye), tab.locator(".js-plotly-plot canvas").first.bounding_box()
    x, y = box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"]
    tab.mouse.move(x, y)
    tab.mouse.down() # a playing figure stops for that
    for step in range(1, 11):
        tab.mouse.move(x + 10 * step, y + 2 * step)
        tab.wait_for_timeout(50)
    tab.mouse.up()
    tab.wait_for_function(f"{eye} !== {before!r}", timeout=15000)


def test_a_click_sorts_a_table(tab):
    tab.goto("tables/measured-cmu.html")
    heads = tab.locator(".results thead th")
    column = next(k for k in range(heads.count()) if heads.nth(k).inner_text().startswith("MPJPE"))
    values = lambda: [float(re.match(r"[\d.]+", row)[0]) for row in tab.evaluate(f"[...document.querySelectorAll('.results tbody tr')].map(row => row.cells[{column}].textContent)")]
    heads.nth(column).locator("button").click()
    rising = values()
    heads.nth(column).locator("button").click()
    assert len(rising) > 1 and rising == sorted(rising) and values() == sorted(rising, reverse=True) and rising != values()


def test_figures_say_what_is_missing_without_scripts(site):
    for name in pages(site):
        text = (site / name).read_text(encoding="utf-8")
        if "plotly.min.js" in text: assert "<noscript>" in text, name
