"""The report page: what it holds, that hostile text stays text, and how it behaves in a browser."""

import html
import json
import re
import shutil

import numpy as np
import pytest
from made_runs import evaluated

from robustjax.analysis import page, summary, svg
from robustjax.types import InputError

HOSTILE = "</script><img src=x onerror=alert(1)>\" onload='alert(2)"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

# Contrast of every text with what lies behind it, as WCAG 2 defines it; those below 4.5 are returned.
CONTRAST = """() => {
  const parse = (colour) => { const n = colour.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const light = (colour) => {
    const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = colour.slice(0, 3).map((v) => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour[3] > 0) return colour;
    }
    return [255, 255, 255, 1];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest("script, .hidden") || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const colour = parse(element instanceof SVGElement ? style.fill : style.color);
    const [high, low] = [light(colour), light(behind(element))].sort((a, b) => b - a);
    const ratio = (high + .05) / (low + .05);
    if (ratio < 4.5) found.push([element.outerHTML.slice(0, 80), ratio]);
  }
  return found;
}"""


def seven(folder):
    """The page of seven runs that have everything, one of them with names that would like to be markup."""
    rng = np.random.default_rng(0)
    workdirs = []
    for i, name in enumerate((None, "cas", "cifs", "fsr", "sns", "kwta", "sap")):
        workdir = evaluated(
            folder / f"{i}", robust=40 + 7 * i, attacks=("clean", "fgsm", "pgd20", "autoattack"), defense__name=name,
            data__name=HOSTILE if i == 1 else "digits",
        )  # fmt: skip
        workdirs.append(workdir)
        evaluation = workdir / "evaluation"
        (workdir / "metrics.jsonl").write_text(
            "".join(
                json.dumps(
                    {
                        "step": e,
                        "epoch": float(e),
                        "split": "validation",
                        "clean_accuracy": 0.9,
                        "pgd_accuracy": 0.01 * e,
                    }
                )
                + "\n"
                for e in range(1, 60)
            )
        )
        points = [
            {"attack": "pgd20", "epsilon": e, "accuracy": 1 - e, "interval_95": [0.9 - e, 1.0]} for e in (0.0, 0.2, 0.5)
        ]
        sweep = {"sweep": "epsilon", "epsilon": 0.2, "chance": 0.1, "points": points}
        (evaluation / "sweep_epsilon.json").write_text(json.dumps(sweep))
        flag = {
            "name": "surrogate_helps",
            "status": "fail",
            "value": 0.2,
            "threshold": 0.05,
            "n": 100,
            "explanation": HOSTILE,
        }
        finding = {"kind": "detached", "where": f"{HOSTILE}.py:7", "count": 1}
        trust = {"verdict": HOSTILE, "flags": {"surrogate_helps": flag}, "findings": [finding] if i == 1 else []}
        (evaluation / "trust.json").write_text(json.dumps(trust))
        images = rng.uniform(size=(12, 32, 32, 3)).astype(np.float32)
        np.savez(
            evaluation / "images.npz", images=images, clean_images=images / 2, labels=np.arange(12) % 2,
            predictions=1 - np.arange(12) % 2, clean_predictions=np.arange(12) % 2, robust=np.zeros(12, bool),
        )  # fmt: skip
    return page.page(summary.summarise(workdirs))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return seven(tmp_path_factory.mktemp("runs"))


def test_whatever_names_hold_is_text(made):
    assert HOSTILE not in made and html.escape(HOSTILE) in made
    assert len(re.findall("<script", made)) == 1 and made.count("</script>") == 1
    assert not re.search(r"<img(?! (class=\"paper\" )?alt=\"[^\"]*\" src=\"data:)", made)


def test_seven_runs_are_small_and_every_section_is_there(made):
    assert len(made) < 3_000_000
    for name in (
        "leaderboard",
        "attacks",
        "epsilon",
        "flags",
        "examples",
        "classes",
        "training",
        "configs",
        "provenance",
    ):
        assert f'<section id="{name}"' in made and f'<a href="#{name}"' in made
    assert "://" not in made
    assert all('role="img" aria-label=' in chart for chart in re.findall(r"<svg viewBox[^>]*>", made))


def test_a_stochastic_network_has_two_kinds_of_figures_and_each_is_named(tmp_path):
    drawn, alone = evaluated(tmp_path / "drawn", attacks=("clean", "pgd20")), tmp_path / "alone"
    for path in (drawn / "evaluation").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_draws": 10}))
    trust = {"verdict": "70 % are robust.", "flags": {}, "acceptance": {"clean": {}}}
    (drawn / "evaluation" / "trust.json").write_text(json.dumps(trust))
    alone.mkdir()
    accuracies = {"clean": 0.9, "worst_case": 0.7, "num_examples": 10, "norm": "linf", "epsilon": 0.1, "robust": [True]}
    (alone / "trust.json").write_text(json.dumps(trust | accuracies))
    made = page.page(summary.summarise([drawn, alone, evaluated(tmp_path / "fixed", attack__tau=1)]))
    # Of three rows, in the leaderboard and in the table of every attack.
    assert made.count("stochastic: expected accuracy of one draw") == 2
    assert made.count("stochastic: majority of draws") == 2
    assert made.count("by the majority of draws; the leaderboard shows the expected accuracy of one draw") == 1
    assert made.count("by the majority of draws.") == 1


def test_a_damaged_file_is_named(tmp_path):
    workdir = evaluated(tmp_path / "run")
    for name, content in (("trust.json", "{"), ("trust.json", "{}"), ("sweep_epsilon.json", "[]"), ("a.npz", "PK")):
        (workdir / "evaluation" / name).write_text(content)
        with pytest.raises(InputError, match=rf"{name} is damaged"):
            page.page(summary.summarise([workdir]))
        (workdir / "evaluation" / name).unlink()


def test_a_chart_says_its_data_in_words_and_as_a_table():
    chart = svg.lines(
        [svg.Series("at", [(0.0, 0.75), (0.2, 0.5)], [(0.7, 0.8), (0.4, 0.6)])], title="a", x_label="epsilon"
    )
    assert 'aria-label="a. accuracy against epsilon: at from 75.0% to 50.0%."' in chart
    assert "<td>0.2</td><td>50.00%</td>" in chart
    # 0.5 lies in the middle of the drawing's height.
    heights = [float(pair.split(",")[1]) for pair in re.search(r'<polyline[^>]*points="([^"]*)"', chart)[1].split()]
    assert heights[1] == pytest.approx((svg._up(0) + svg._up(1)) / 2, abs=0.06)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    try:
        from playwright import sync_api
    except ImportError:
        pytest.skip("no playwright here")
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, made, tmp_path):
    """Opens the page at a width and in a colour scheme; whatever goes wrong in it is an error."""
    trouble = []
    (tmp_path / "report.html").write_text(made)

    def opened(width=1440, scheme="light"):
        view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        view.on("console", lambda message: trouble.append(message.text))
        view.on("pageerror", lambda error: trouble.append(str(error)))
        view.on("dialog", lambda dialog: trouble.append(dialog.message))
        view.on(
            "request",
            lambda request: trouble.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
        )
        view.goto((tmp_path / "report.html").as_uri())
        return view

    yield opened
    assert trouble == []


def _tab_to(view, selector):
    for _ in range(60):
        view.keyboard.press("Tab")
        if view.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"the keyboard does not reach {selector}")


def _labels(view):
    rows = view.locator("#board tbody tr:visible th").all_inner_texts()
    return [row.rsplit(" ", 1)[-1] for row in rows]


def test_the_leaderboard_sorts_and_filters_by_keyboard(opened):
    view = opened()
    assert _labels(view)[0] == "defense" and len(_labels(view)) == 7  # "no defense", as given
    _tab_to(view, "button[data-column='4']")  # AutoAttack
    view.keyboard.press("Enter")
    head = view.locator("th:has(button[data-column='4'])")
    assert head.get_attribute("aria-sort") == "descending"
    assert _labels(view) == ["sap", "kwta", "sns", "fsr", "cifs", "cas", "defense"]
    view.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending" and _labels(view)[-1] == "sap"
    view.locator("#filter").focus()
    view.keyboard.type("CIFS")
    assert _labels(view) == ["cifs"] and view.locator("#count").inner_text() == "1 of 7 shown"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_it_can_be_read_on_a_phone_and_on_a_desk_in_light_and_dark(opened, width, scheme):
    view = opened(width, scheme)
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert view.evaluate(CONTRAST) == []
    background = view.evaluate("getComputedStyle(document.body).backgroundColor")
    red, green, blue = map(int, re.findall(r"\d+", background)[:3])
    assert (red + green + blue > 3 * 128) == (scheme == "light")


def test_a_print_has_no_controls_and_without_a_script_all_is_there(opened, browser, made, tmp_path):
    view = opened(width=720)  # of A4 without its margins
    view.emulate_media(media="print")
    edges = "[...document.querySelectorAll('.board')].map((table) => table.getBoundingClientRect().right)"
    assert max(view.evaluate(edges)) <= 720
    assert not view.locator("nav").is_visible() and not view.locator("#filter").is_visible()
    plain = browser.new_context(java_script_enabled=False).new_page()
    (tmp_path / "report.html").write_text(made)
    plain.goto((tmp_path / "report.html").as_uri())
    assert plain.locator("#board tbody tr").count() == 7
