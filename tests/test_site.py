"""`make site`: what the copies are, without Sphinx; that the build is strict; and every page in a browser."""

import functools
import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import threading
import time
import zipfile
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("kit_site", ROOT / ".ci" / "site.py")
site = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(site)

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
DESKTOP, PHONE = 1300, 390


# --- the copies


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "source"
    site.copy(site.Source(folder))
    return folder


@pytest.fixture
def small(tmp_path):
    """A source with nothing but the docs, to write into."""
    return site.Source(tmp_path / "source")


def sidebar(source: Path) -> list[str]:
    return re.findall(r"^[\w/]+$", (source / "index.md").read_text(encoding="utf-8").split("```{toctree}", 1)[1], re.M)


def test_the_sidebar_has_every_notebook_in_the_order_of_teaching_and_every_document(source):
    taught = re.findall(r"^\| \[(\d\d) ", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    shown = [name.removeprefix("notebooks/") for name in sidebar(source) if name.startswith("notebooks/")]
    assert [name[:2] for name in shown] == taught and sorted(shown) == NOTEBOOKS
    documents = {f"docs/{path.stem}" for path in (ROOT / "docs").glob("*.md")} | {"docs/course/setup", "data/README"}
    assert documents <= set(sidebar(source))


def test_the_front_page_leads_to_the_students_edition(source):
    assert re.search(r"\[the student's edition, \d+ kB\]\(student\.zip\)", (source / "index.md").read_text())
    with zipfile.ZipFile(source / "student.zip") as packed:
        held = sorted(name for name in packed.namelist() if name.endswith(".ipynb"))
    assert held == [f"{name}.ipynb" for name in NOTEBOOKS]


def test_a_notebook_that_has_no_place_in_the_order_comes_last():
    paths = [Path(f"{number}_x.ipynb") for number in ("00", "01", "04", "06", "07", "08")]
    assert [path.stem[:2] for path in site.teaching_order(paths)] == ["00", "04", "01", "06", "07", "08"]


def test_every_module_has_its_place_on_one_page_in_the_order_of_the_readmes_table(source):
    pages = [name for name in sidebar(source) if name.startswith("api/")]
    assert pages[:3] == ["api/text", "api/generator", "api/classifiers"] and pages[-1] == "api/rest"
    described = [
        module
        for page in pages
        for module in re.findall(r"automodule:: (\S+)", (source / f"{page}.md").read_text(encoding="utf-8"))
    ]
    assert sorted(described) == sorted(site.module(path) for path in site.modules())
    assert {"nayer_lib.losses", "nayer_notebooks.plots"} <= {*described}
    [losses] = [page for page in pages if "losses" in page]
    assert described[described.index("nayer_lib.losses") :][:3] == [
        f"nayer_lib.{name}" for name in ("losses", "memory", "augment")
    ], losses


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebooks_copy_hides_the_bootstrap_and_describes_every_figure(source, name):
    committed = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    copied = nbformat.read(source / "notebooks" / f"{name}.ipynb", as_version=4)
    assert len(copied.cells) == len(committed.cells)
    hidden = ["remove-input" in cell.metadata.get("tags", []) for cell in copied.cells]
    assert hidden.index(True) == 1 and "google.colab" in copied.cells[1].source
    figures = [
        BeautifulSoup(output.data["text/html"], "html.parser").img
        for cell in copied.cells
        for output in cell.get("outputs", [])
        if "<img" in output.get("data", {}).get("text/html", "")
    ]
    assert figures and all(len(image["alt"].split()) >= 5 for image in figures)
    stored = json.dumps(copied)
    assert '"image/png"' not in stored  # a page would give it a file name to read out
    assert not re.search(r"!\[[^]]*\]\(https?:", stored)  # the badge


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("README.md", "[t](docs/tables.md#x), [w](https://a.b/c.md) and [h](#here)", None),  # as it stands
        ("docs/tables.md", "[front](../README.md#results)", "[front](../index.md#results)"),
        ("docs/tables.md", "[code](../notebooks/nayer_notebooks/rule.py)", "{py:mod}`code <nayer_notebooks.rule>`"),
        ("README.md", "[text](nayer_lib/text/__init__.py)", "{py:mod}`text <nayer_lib.text>`"),
        ("docs/tables.md", "[list](../data/paper/misprints.csv)", None),
    ],
)
def test_links_hold_on_the_site(small, name, text, expected):
    assert small.linked(text, name) == (expected or text)


def test_a_file_that_is_linked_and_no_page_comes_along_as_a_download(small):
    small.linked("[list](../data/paper/misprints.csv)", "docs/tables.md")
    assert (small.folder / "data/paper/misprints.csv").read_bytes() == (ROOT / "data/paper/misprints.csv").read_bytes()


def small_notebook():
    """Bootstrap, a cell with a folded output, and a folded answer."""
    folded = new_code_cell("print(1 + 1)", outputs=[new_output("stream", text="two\n")])
    folded.metadata.tags = ["hide-output"]
    answer = new_markdown_cell("<details><summary>Which was it?</summary>\n\nIt was *(b)*.\n\n</details>")
    cells = [new_markdown_cell("# A small one"), new_code_cell("!secret"), folded, answer]
    return new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


# --- the build


def test_make_site_installs_what_it_needs_once_and_builds_every_time(tmp_path):
    """With programs that only write down what they were asked, in an environment that is set up."""
    for name in ("pyproject.toml", "constraints.txt", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "uv"):
        (tmp_path / ".venv" / "bin" / name).write_text('#!/bin/sh\necho "$(basename "$0") $*" >> asked\n')
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()
    for _ in range(2):
        command = ["make", "site", "CONSTRAINTS=-c constraints.txt"]  # `make test` may have others
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    install, *builds = (tmp_path / "asked").read_text().splitlines()
    assert install.startswith("uv pip install") and install.endswith("-c constraints.txt -e .[site]")
    assert builds == ["python .ci/site.py"] * 2 and "build/site/html" in done.stdout


@pytest.fixture(scope="module")
def sphinx():
    """What the extra `site` brings."""
    for name in ("sphinx", "myst_nb", "sphinx_book_theme"):
        pytest.importorskip(name, reason="the extra `site` is not installed: `make site` does it")


def built(small, **pages: str) -> tuple[int, Path]:
    """A site of a few pages."""
    shutil.rmtree(small.folder / "docs")
    for name, text in pages.items():
        small.write(f"{name}.md", text)
    out = small.folder.with_name("html")
    return site.build(small.folder, out), out


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong", ["[there](nowhere.md)", "[there](#nowhere)", "{py:mod}`nowhere`", "![x](nowhere.png)"]
)
def test_a_link_that_leads_nowhere_stops_the_build(sphinx, small, capfd, wrong):
    status, _ = built(small, index=f"# Front\n\n{wrong}\n")
    assert status != 0 and "nowhere" in capfd.readouterr().err


@pytest.mark.slow
def test_cells_are_hidden_and_folded_and_formulas_need_no_script(sphinx, small):
    notebook = small_notebook()
    site.site_notebook(notebook, small, "small.ipynb")
    small.write("small.ipynb", nbformat.writes(notebook))
    front = "# Front\n\nInline $T^2$.\n\n$$\\mathcal{L} = \\lVert x \\rVert_2$$\n\n```{toctree}\nsmall\n```\n"
    status, out = built(small, index=front)
    assert status == 0
    page = BeautifulSoup((out / "small.html").read_text(encoding="utf-8"), "html.parser").article
    assert "secret" not in page.text
    output, answer = page.find_all("details")
    assert not [fold for fold in (output, answer) if fold.has_attr("open")]
    assert "two" in output.text and "print" not in output.text
    assert answer.em.text == "(b)" and answer.summary.text == "Which was it?"
    formulas = BeautifulSoup((out / "index.html").read_text(encoding="utf-8"), "html.parser").find_all("math")
    assert [formula.get("display") for formula in formulas] == [None, "block"]


@pytest.fixture(scope="module")
def pages(sphinx, source) -> Path:
    out = source.with_name("html")
    assert site.build(source, out) == 0
    return out


# --- the pages in a browser


class Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def address(pages):
    handler = functools.partial(Server, directory=pages)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="the extra `site` is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as browser:
        yield browser


def resize(browser, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


FACTS = """return {
    title: document.title,
    alts: [...document.images].map(image => [image.alt, image.complete && image.naturalWidth > 0]),
    ids: [...document.querySelectorAll("[id]")].map(element => element.id),
    links: [...document.links].map(link => link.href)}"""


@pytest.fixture(scope="module")
def seen(browser, address, pages) -> dict[str, dict]:
    """What every page is and does."""
    facts = {}
    for path in sorted(pages.rglob("*.html")):
        name = path.relative_to(pages).as_posix()
        if name.startswith("_static/"):  # the theme's own
            continue
        resize(browser, DESKTOP)
        browser.get(address + name)
        facts[name] = browser.execute_script(FACTS)
        facts[name]["errors"] = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        facts[name]["requests"] = sent
        resize(browser, PHONE)
        facts[name]["phone"] = browser.execute_script("return document.documentElement.scrollWidth")
    resize(browser, DESKTOP)
    return facts


@pytest.mark.slow
def test_every_page_opens_without_an_error(seen, source):
    assert {f"{name}.html" for name in ("index", *sidebar(source))} < set(seen)
    assert not {name: facts["errors"] for name, facts in seen.items() if facts["errors"] or not facts["title"]}


@pytest.mark.slow
def test_no_request_leaves_the_machine(seen, address):
    requests = {url for facts in seen.values() for url in facts["requests"]}
    assert f"{address}index.html" in requests  # they are recorded
    assert not {url for url in requests if not url.startswith((address, "data:", "blob:"))}


@pytest.mark.slow
def test_every_picture_is_there_and_is_described_in_five_words_or_more(seen):
    alts = [(name, *image) for name, facts in seen.items() for image in facts["alts"]]
    assert len(alts) > len(NOTEBOOKS)
    assert not [image for image in alts if len(image[1].split()) < 5 or not image[2]]


@pytest.mark.slow
def test_every_link_and_anchor_leads_somewhere(seen, address, pages):
    lost = set()
    for name, facts in seen.items():
        for link in facts["links"]:
            page, anchor = urldefrag(link)
            if not page.startswith(address):
                continue
            target = unquote(page.removeprefix(address)).split("?")[0]
            if not (pages / target).is_file() or anchor and unquote(anchor) not in seen[target]["ids"]:
                lost.add((name, link.removeprefix(address)))
    assert not lost


@pytest.mark.slow
def test_no_page_scrolls_sideways_on_a_phone(seen):
    assert not {name: facts["phone"] for name, facts in seen.items() if facts["phone"] > PHONE}


def until(browser, script: str):
    """What a script gives, as soon as it gives something."""
    end = time.monotonic() + 20
    while not (value := browser.execute_script(script)) and time.monotonic() < end:
        time.sleep(0.1)
    return value


@pytest.mark.slow
def test_the_search_finds_the_notebooks_on_the_noisy_layer(browser, address):
    browser.get(f"{address}search.html?q=noisy+layer")
    found = until(browser, "return [...document.querySelectorAll('#search-results li a')].map(link => link.href)")
    assert [link for link in found if re.search(r"/notebooks/0[34]_", link)], found


@pytest.mark.slow
def test_an_answer_is_closed_and_opens_on_a_click(browser, address):
    browser.get(f"{address}notebooks/{NOTEBOOKS[0]}.html")
    shown = "return document.querySelector('article details > :not(summary)').checkVisibility()"
    assert not browser.execute_script(shown)
    browser.execute_script("document.querySelector('article details summary').scrollIntoView({block: 'center'})")
    browser.find_element("css selector", "article details summary").click()
    assert browser.execute_script(shown)


@pytest.mark.slow
def test_in_dark_mode_figures_stay_on_white(browser, address):
    browser.get(f"{address}notebooks/{NOTEBOOKS[0]}.html")
    browser.execute_script("document.documentElement.dataset.theme = 'dark'")
    look = "const style = getComputedStyle(document.querySelector('.cell_output img'));"
    look += "return [style.backgroundColor, style.filter, getComputedStyle(document.body).backgroundColor]"
    figure, dimmed, page = browser.execute_script(look)
    assert (figure, dimmed) == ("rgb(255, 255, 255)", "none") and page != figure
