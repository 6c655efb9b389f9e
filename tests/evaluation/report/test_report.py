"""The report in its three forms."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

from edgemae.evaluation.report.report import checked, console_table, markdown_table, to_json, write_report
from edgemae.evaluation.report.tables import TABLES
from edgemae.spec.errors import InternalError, StorageError
from edgemae.spec.plan_schema import GatePlan
from edgemae.spec.report import Report
from tests.evaluation.samples import HOSTILE, report, scored

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d494844520000000100000001080000000003a7e9b40000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)
FIGURES = [("Original, masked, reconstructed", PIXEL), ("Reliability: before and after", PIXEL)]


class Page(HTMLParser):
    """Collect tags, addresses and text of a page, and check that tags are closed in order."""

    VOID = frozenset({"meta", "img", "source", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "poster")]
        assert not any(k.startswith("on") for k, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "deep"
    write_report(report(), folder, FIGURES)
    return folder


def test_json_round_trip_is_the_report_and_names_figures_that_exist(written: Path) -> None:
    read = msgspec.json.decode((written / "report.json").read_bytes(), type=Report)
    assert msgspec.structs.replace(read, figures=[]) == checked(report())
    assert len(read.figures) == 6  # two given, accuracy-latency, per-class, two loss curves
    for file in read.figures:
        assert (written / file).read_bytes().startswith(b"\x89PNG")


def test_json_is_the_same_bytes_whatever_the_order_of_keys() -> None:
    forward, backward = {"b": 1, "a": [1.5, None]}, {"a": [1.5, None], "b": 1}
    assert to_json(report(machine=forward)) == to_json(report(machine=backward))
    assert to_json(report(machine=forward)).endswith(b"}\n")


def test_json_has_the_fields_that_scripts_read(written: Path) -> None:
    tree = msgspec.json.decode((written / "report.json").read_bytes())
    assert [stage["stage"] for stage in tree["stages"]] == ["teacher", "student", "pruned", "int8"]
    assert {"stage", "top1", "n", "params", "macs", "size_bytes"} <= set(tree["stages"][0])
    assert {"engine", "precision", "p50_ms", "n", "ratio_to_torch_eager"} <= set(tree["engines"][0])
    assert {"gate", "limit", "value", "passed"} <= set(tree["gates"][0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float32("nan")])
def test_not_finite_numbers_are_refused_with_their_place_and_nothing_is_written(bad: float, tmp_path: Path) -> None:
    broken = report(curves={"distill": [{"epoch": 1.0, "pixel": 1.0}, {"epoch": 2.0, "pixel": bad}]})
    with pytest.raises(InternalError, match=r"report\.curves\.distill\[1\]\.pixel"):
        write_report(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numpy_numbers_become_plain_ones_and_other_objects_are_refused() -> None:
    tree = msgspec.json.decode(to_json(report(data={"n": np.int64(3), "share": np.float32(0.5)})))
    assert tree["data"] == {"n": 3, "share": 0.5}
    with pytest.raises(InternalError, match="object"):
        to_json(report(data={"thing": object()}))


def test_html_loads_nothing_and_runs_nothing(written: Path) -> None:
    text = (written / "report.html").read_text("utf-8")
    page = Page(text)
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert not re.search(r"@import|url\(|https?://", text)
    assert "default-src 'none'" in text


def test_html_shows_hostile_text_as_text(written: Path) -> None:
    text = (written / "report.html").read_text("utf-8")
    assert "<script" not in text
    assert "<b>more</b>" not in text
    page = Page(text)
    assert HOSTILE in page.text
    assert "clothing & <b>more</b>" in page.text


def test_html_has_every_part(written: Path) -> None:
    text = Page((written / "report.html").read_text("utf-8")).text
    for part in (
        "From teacher to int8", "Engines, measured", "Accuracy against latency", "Training", "Figures",
        "Per class", "Calibration", "Attention forms", "Where the time goes", "Data", "Provenance", "CC-BY-NC-4.0",
        "Machine", "some CPU", "What ships", "1 of 4 limits not shown", "empty file",
    ):  # fmt: skip
        assert part in text, part
    assert text.index("Verdict") < text.index("What ships") < text.index("From teacher to int8")


@pytest.mark.parametrize(
    "small",
    [
        report(labelled=False, curves={}),
        report(gates=GatePlan(), curves={}),
        report(stages=(), engines=(), gates=(), curves={}, history=[], data={}, machine={}, attention=[], notes=[]),
        report(engines=(), curves={"distill": []}, int8_evidence={}),
        report(stages=scored()[0][1:2], engines=()),
    ],
    ids=["unlabelled", "no limits", "empty", "no engines", "student only"],
)
def test_every_kind_of_report_can_be_written(small: Report, tmp_path: Path) -> None:
    write_report(small, tmp_path)
    Page((tmp_path / "report.html").read_text("utf-8"))
    assert (tmp_path / "report.md").read_text("utf-8").startswith("# ")
    Console(file=io.StringIO()).print(console_table(small))


def test_an_unlabelled_report_speaks_of_agreement(tmp_path: Path) -> None:
    write_report(report(labelled=False, curves={}, engines=()), tmp_path)
    text = Page((tmp_path / "report.html").read_text("utf-8")).text
    assert "with the float student, 200 images" in text
    assert "Calibration" not in text


def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        write_report(report(curves={}), tmp_path / "file")


def test_markdown_tables_keep_their_shape_under_hostile_names(written: Path) -> None:
    text = (written / "report.md").read_text("utf-8")
    assert "<script" not in text
    for part in TABLES:
        lines = markdown_table(report(), part).splitlines()
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert bars == {len(TABLES[part](report()).header) + 1}
        assert all(line in text for line in lines)


def test_markdown_table_with_chosen_columns() -> None:
    lines = markdown_table(report(), "engines", ("Engine", "p50", "× torch eager")).splitlines()
    assert lines[0] == "| Engine | p50 | × torch eager |"
    assert lines[2] == "| **openvino** | 1.31 ms | 4.81× (4.76 to 4.86) |"


def test_console_prints_verdicts_as_words_within_100_columns() -> None:
    out = io.StringIO()
    Console(file=out, width=100, color_system=None).print(console_table(report()))
    text = out.getvalue()
    assert "missed" in text
    assert "passed" in text
    assert "1 of 4 limits not shown to be met." in text
    assert max(map(len, text.splitlines())) <= 100


def test_console_takes_brackets_in_names_as_text() -> None:
    out = io.StringIO()
    odd = msgspec.structs.replace(report().engines[0], reason="[red]x[/red]")
    Console(file=out, width=100, color_system=None).print(console_table(report(engines=(odd,))))
    assert "[red]x[/red]" in out.getvalue()
