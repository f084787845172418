"""The report as JSON and as a page: a versioned schema, totals that agree with the forecast, nothing from outside."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape as html_of
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo_case import squares

from dpcompile import InvalidInput, dpcompile
from dpcompile.report.document import SCHEMA, VERSION
from dpcompile.report.drawing import drawing
from dpcompile.report.fold import folded_name, in_short
from dpcompile.report.kinds import KINDS
from dpcompile.report.text import Report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Net(nn.Module):
    """A convolution, two equal blocks, a tied table, and a name that a page must escape."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3, padding=1)
        self.add_module("<b>&", nn.LayerNorm(16))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(2))
        self.out = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.get_submodule("<b>&")(self.convolution(x).flatten(2))
        for block in self.blocks:
            x = x + block(x)
        return self.out(x.flatten(1))


def reported(**options: Any) -> Report:
    """The report of a small network."""
    torch.manual_seed(0)
    batch = torch.randn(6, 2, 4, 4), torch.randint(0, 3, (6,))
    return dpcompile(Net(), nn.CrossEntropyLoss(), hardware="cpu", example_batch=batch, **options).report()


@pytest.fixture(scope="module")
def report() -> Report:
    """The report of the default plan."""
    return reported()


@pytest.fixture(scope="module")
def document(report: Report) -> dict[str, Any]:
    """The same as JSON that was written and read."""
    found: dict[str, Any] = json.loads(report.json())
    return found


def test_the_schema_is_named_and_versioned(document: dict[str, Any]) -> None:
    assert (document["schema"], document["version"]) == (SCHEMA, VERSION) == ("dpcompile-report", 1)
    assert set(document) == {
        "schema", "version", "made_with", "hardware", "batch_size", "microbatch", "second_backward_from", "backend",
        "clipping", "sensitivity", "ordinary", "private", "sites", "notes", "without_gradient",
    }  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"microbatch": 2}, {"schedule": "two-pass"}], ids=str)
def test_totals_are_those_of_the_forecast(options: dict[str, Any]) -> None:
    report = reported(**options)
    found = json.loads(report.json())
    assert found["private"]["seconds"] == pytest.approx(report.forecast.seconds)
    assert found["ordinary"]["seconds"] == pytest.approx(report.forecast.ordinary_seconds)
    assert found["private"]["peak_bytes"] == pytest.approx(report.forecast.peak_bytes)
    for step in ("private", "ordinary"):
        assert set(found[step]["seconds_by_kind"]) == set(KINDS)
        assert sum(found[step]["seconds_by_kind"].values()) == pytest.approx(found[step]["seconds"])
    assert (found["second_backward_from"] is None) == (options.get("schedule") != "two-pass")


def test_kinds_are_where_they_belong(document: dict[str, Any]) -> None:
    ordinary, private = (document[step]["seconds_by_kind"] for step in ("ordinary", "private"))
    assert ordinary["norms"] == ordinary["clipped sums"] == 0 < ordinary["weight gradients"]
    assert private["weight gradients"] == 0 < min(private["norms"], private["clipped sums"], private["forward"])


def test_every_parameter_has_one_row_and_equal_layers_share_theirs(document: dict[str, Any], report: Report) -> None:
    names = [name for site in document["sites"] for name in site["parameters"]]
    assert sorted(names) == sorted(choice.site.parameter for choice in report.plan.choices)
    assert any(site["name"] == "blocks.{0,1}.0.weight" and len(site["parameters"]) == 2 for site in document["sites"])


def test_the_runner_up_is_the_best_of_the_others(document: dict[str, Any]) -> None:
    for site in document["sites"]:
        others = [way["seconds"] for way in site["others"]]
        assert (site["runner_up"] is None) == (not others)
        if others:
            assert site["runner_up"]["seconds"] == min(others)
            assert site["runner_up"]["times_slower"] == pytest.approx(min(others) / site["chosen"]["seconds"])


def test_the_text_says_what_the_document_says(report: Report, document: dict[str, Any]) -> None:
    found = document["private"]["seconds_by_kind"]
    assert f"predicted: {(found['norms'] + found['clipped sums']) * 1e3:.2f} ms for norms and clipped sums" in str(report)


def test_half_types_are_priced_as_they_are_computed() -> None:
    batch = torch.randn(4, 9, 64).bfloat16()
    half = dpcompile(nn.Linear(64, 64).bfloat16(), squares, hardware="h200", example_batch=(batch,)).report()
    full = dpcompile(nn.Linear(64, 64), squares, hardware="h200", example_batch=(batch.float(),)).report()
    assert half.plan.choices[0].option.seconds == pytest.approx(full.plan.choices[0].option.seconds)


@pytest.mark.parametrize("name", ["[mask]", ":smile:", "[/red]", "{{ x }}", '"quoted"'])
def test_names_are_shown_as_they_are(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tok = nn.ModuleDict({name: nn.Linear(3, 2)})

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.tok[name](x)
            return out

    found = dpcompile(Named(), loss=squares, example_batch=(torch.randn(2, 3),)).report()
    assert f"tok.{name}.weight" in str(found) and html_of(f"tok.{name}.weight").replace("&quot;", "&#34;") in found.html()


def test_weight_gradients_of_convolutions_are_told_apart() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    found = dpcompile(model, loss=squares, example_batch=(torch.randn(2, 3, 3, 3),)).report().facts.ordinary
    names = [node.name for node, kind in found.kinds.items() if kind == "weight gradients"]
    assert any(name.startswith("convolution_backward") for name in names)


def test_names_that_are_not_all_combinations_are_not_folded_into_them() -> None:
    assert folded_name(["b.0.0.weight", "b.1.1.weight"]) == "b.0.0.weight and 1 more"
    assert folded_name(["b.0.0", "b.0.1", "b.1.0", "b.1.1"]) == "b.{0,1}.{0,1}"


def test_a_folder_that_is_not_there_is_refused(report: Report, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no folder"):
        report.save(tmp_path / "none" / "report.html")


def test_a_report_is_saved_as_its_ending_says(report: Report, tmp_path: Path) -> None:
    for ending, start in ((".html", "<!doctype html>"), (".json", "{"), (".txt", "")):
        report.save(tmp_path / f"report{ending}")
        assert (tmp_path / f"report{ending}").read_text(encoding="utf-8").startswith(start)
    report.save(tmp_path / "REPORT.JSON")
    with pytest.raises(InvalidInput, match=r"\.html, \.json, \.txt"):
        report.save(tmp_path / "report.pdf")


class Tags(HTMLParser):
    """What a page refers to, and whether its elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    """The page."""
    return report.html()


def test_the_page_refers_to_nothing_outside(html: str) -> None:
    tags = Tags()
    tags.feed(html)
    assert all(reference.startswith("#") for reference in tags.references)
    assert "<script src" not in html and "@import" not in html and "url(http" not in html
    assert tags.counts["svg"] == 5


def test_ids_are_unique_and_names_of_the_users_are_escaped(html: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert "<b>&amp;" not in html and "<b>&." not in html and "&lt;b&gt;&amp;" in html


def test_the_drawing_has_every_node_apart_and_edges_that_end_at_nodes(report: Report) -> None:
    joint = report.outlook.rewritten(report.plan)
    drawn = drawing(joint, report.facts.private.kinds, report.facts.private.nodes)
    assert len({(box.x, box.y) for box in drawn.boxes}) == len(drawn.boxes) > 30
    assert all(0 <= start < len(drawn.boxes) and 0 <= end < len(drawn.boxes) for start, end, _ in drawn.paths)
    assert all(0 <= box.x < drawn.width and 0 <= box.y < drawn.height for box in drawn.boxes)
    assert any(band.name == "blocks.1.0" for band in drawn.bands)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_runs_the_page_without_an_error(html: str, tmp_path: Path) -> None:
    listener = "<script>window.onerror = (m) => { document.documentElement.dataset.error = m; };</script>"
    path = tmp_path / "report.html"
    plain = html.replace("<head>", f"<head>{listener}")
    click = "<script>document.querySelector('#search').value = 'norms_of'; " \
            "document.querySelector('#search').dispatchEvent(new Event('input'));" \
            "document.querySelector('#whole').click(); document.querySelector('#closer').click();</script></body>"  # fmt: skip
    path.write_text(plain.replace("</body>", click), encoding="utf-8")
    dom = browser(path, tmp_path, "--dump-dom")
    assert "data-error" not in dom
    ready = re.search(r'<body data-ready="(\d+)"', dom)
    assert ready is not None and int(ready[1]) == html.count('class="node"')
    assert "1 found" in dom and 'class="node found"' in dom
    assert re.search(r'<svg id="graph" viewBox="-?[\d.]+ -?[\d.]+ [\d.]+ [\d.]+"', dom)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_draws_something(html: str, tmp_path: Path) -> None:
    path, picture = tmp_path / "report.html", tmp_path / "report.png"
    path.write_text(html, encoding="utf-8")
    browser(path, tmp_path, "--window-size=1280,2400", f"--screenshot={picture}")
    image = matplotlib_image(picture)
    assert image.shape[:2] == (2400, 1280)
    assert len({tuple(pixel) for pixel in image[::8, ::8].reshape(-1, image.shape[2]).tolist()}) > 20


def matplotlib_image(path: Path) -> Any:
    """Pixels of a PNG file."""
    from matplotlib.image import imread  # noqa: PLC0415  (only where a browser is installed)

    return imread(path)


def browser(path: Path, folder: Path, *arguments: str) -> str:
    """What headless Chromium prints; it gets a profile of its own and no network."""
    assert BROWSER is not None
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip
    command = [BROWSER, *flags, f"--user-data-dir={folder / 'profile'}", *arguments, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_an_empty_plot_does_no_harm() -> None:
    private = dpcompile(nn.Linear(3, 2, bias=False), loss=squares, example_batch=(torch.randn(2, 3),))
    assert "<svg" in private.report().html()


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        (["0", "1"], "0,1"),
        (["0", "1", "2", "3", "7"], "0-3,7"),
        (["3"], "3"),
        (["1", "3", "4", "5"], "1,3-5"),
        (["2", "a"], "2,a"),
    ],
)
def test_numbers_of_equal_layers_are_written_in_short(numbers: list[str], text: str) -> None:
    assert in_short(numbers) == text
