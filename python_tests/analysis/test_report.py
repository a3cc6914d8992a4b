import base64
import copy
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from stratcore.analysis import run_figures, to_plain, write_report


class _Page(HTMLParser):
    """Collects tags with their attributes, and checks that they are balanced."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def results(run):
    return copy.deepcopy(to_plain(run[0]))


def test_page_is_self_contained(run, pictures, tmp_path):
    text = write_report(tmp_path, run[0], pictures).read_text(encoding="utf-8")
    page = _Page(text)
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert len(sources) == len(pictures) == 11
    for source in sources:
        prefix, _, data = source.partition(",")
        assert prefix == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    assert not [attributes for _, attributes in page.tags if "href" in attributes]
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|url\(|@import", text.replace("\n", " "))


def test_figures_come_in_reading_order_with_captions(run, pictures, tmp_path):
    reordered = {"mine": Figure(), **dict(reversed(pictures.items()))}
    text = write_report(tmp_path, run[0], reordered).read_text(encoding="utf-8")
    assert re.findall(r'<figure id="(\w+)">', text) == [*pictures, "mine"]
    assert "<b>Do experts follow domains?</b> An interval" in text
    assert "<b>Mine.</b>" in text


def test_a_figure_is_drawn_and_a_path_is_read(run, figures, pictures, tmp_path):
    given = {"gate_heatmap": figures["gate_heatmap"], "agreement": pictures["agreement"]}
    text = write_report(tmp_path, run[0], given).read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 2
    assert base64.b64encode(pictures["agreement"].read_bytes()).decode() in text
    (tmp_path / "not.png").write_text("<svg/>")
    with pytest.raises(ValueError, match="'gate_heatmap': expected a PNG file"):
        write_report(tmp_path, run[0], {"gate_heatmap": tmp_path / "not.png"})


def test_what_users_wrote_is_escaped(results, tmp_path):
    attack = '<script>alert("x")</script>'
    results["recipe"] = results["command"] = results["data"]["name"] = attack
    results["data"]["domains"][0]["name"] = results["assignment"]["domains"][0] = attack
    results["environment"] = {attack: attack}
    results["configuration"] = {attack: {attack: [attack]}}
    results["reconstruction"]["overall"]["name"] = results["assignment"]["rule"] = attack
    results["dimensions"]["per_stratum"][0]["stratum"] = results["agreement"]["baselines"][0]["name"] = attack
    results["training"]["final_losses"] = {attack: 1.0}
    text = write_report(tmp_path, results, {attack: Figure()}).read_text(encoding="utf-8")
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 10
    assert 'id="<' not in text


def test_numbers_of_the_results_stand_in_the_page(run, results, tmp_path):
    text = write_report(tmp_path, run[0], {}).read_text(encoding="utf-8")
    for number in (
        results["agreement"]["overall"]["ari"]["value"],
        results["reconstruction"]["baselines"][2]["original_space"]["fvu"],
        results["experts"]["coherence"][3],
    ):
        assert f"{number:.3f}" in text
    assert "python -m stratcore.train dictionary_moe seed=0" in text
    assert "model.num_experts" in text


def test_expert_without_rows_and_unknown_values_are_written_as_such(results, tmp_path):
    results["reconstruction"]["per_expert"][2] |= {"pca_space": None, "original_space": None}
    results["assignment"]["purity"][2] = None
    results["agreement"]["within_length"] = None
    results["data"]["domains"][0]["mean_tokens"] = None
    results["reconstruction"]["baselines"][0]["active_flops"] = None
    text = write_report(tmp_path, results, {}).read_text(encoding="utf-8")
    assert "<td>E2</td><td>16</td><td>0</td><td>n/a</td><td>n/a</td>" in text
    assert "rows of like length" not in text


def test_rows_without_domains_make_a_page(results, run, tmp_path):
    results["agreement"] = None
    figures = run_figures(results, run[1])
    assert "agreement" not in figures
    text = write_report(tmp_path, results, {}).read_text(encoding="utf-8")
    assert "The rows carry no domains" in text
    assert "Agreement with domains" not in text


def test_missing_key_is_named_and_the_old_page_stays(run, results, tmp_path):
    before = write_report(tmp_path, run[0], {}).read_bytes()
    del results["sparsity"]["uniform_gate"]
    with pytest.raises(ValueError, match=r"missing key 'sparsity.uniform_gate'"):
        write_report(tmp_path, results, {})
    assert (tmp_path / "report.html").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
