"""README and docs say what is true: commands and snippets run, tables are the measured ones, links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import msgspec
import pytest
import typer

from edgemae.cli import app
from edgemae.distill.recipes import RECIPES
from edgemae.pipeline.plan_rules import check_plan
from edgemae.profiling import records
from edgemae.retrieval.feature_file import SCHEMAS
from edgemae.spec import manifest
from edgemae.spec.plan_loading import load_plan
from edgemae.spec.plan_schema import Section
from edgemae.spec.report import Report
from tests.support.doc_pages import (
    BLOCK,
    PAGES,
    README,
    ROOT,
    Block,
    anchors,
    blocks,
    edgemae_arguments,
    inline_code,
    links,
    prose,
)  # fmt: skip
from tests.support.tiny_job import PLAN, Job, Ran, edgemae, stage, write_target

RESULTS = ROOT / "tools" / "results"
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
UsageError: Any = typer.BadParameter.__base__  # typer carries a click of its own
COMMANDS: Any = typer.main.get_command(app)
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)


# ---------------------------------------------------------------- pages and links


def test_the_readme_is_short_and_begins_with_code() -> None:
    text = README.read_text("utf-8")
    assert "```" in "\n".join(text.splitlines()[:12])
    assert len(text.splitlines()) <= 150
    assert len(text.encode()) <= 9000


def test_every_page_is_reachable_from_the_readme() -> None:
    seen, todo = set(), [README]
    while todo:
        page = todo.pop()
        if page not in seen:
            seen.add(page)
            todo += [target for target, _ in links(page) if target in PAGES]
    assert seen == set(PAGES)


@EVERY_PAGE
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), target
        assert target.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(target), f"{target.name}#{anchor}"


def test_the_source_distribution_holds_what_pages_link_to() -> None:
    build = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["tool"]["hatch"]["build"]["targets"]
    ships = {*build["sdist"]["only-include"], "README.md", "LICENSE"}
    linked = {target.relative_to(ROOT).parts[0] for page in PAGES for target, _ in links(page)}
    assert linked <= ships


@EVERY_PAGE
def test_every_block_of_code_has_a_known_language(page: Path) -> None:
    assert page.read_text("utf-8").count("```") == 2 * len(BLOCK.findall(page.read_text("utf-8")))
    assert {block.language for block in blocks(page)} <= {"bash", "python"}


OLD = r"pictures?|ladder|rungs?|contenders?|normal sets?|arrows?|aware_when|told|BUNDLE\.md"


@EVERY_PAGE
def test_pages_use_the_words_of_the_glossary(page: Path) -> None:
    if page.name == "plan.md":
        return  # generated: the words of the source
    assert re.findall(rf"\b(?:{OLD})\b", prose(page)) == []


def test_the_architecture_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rooms = {path.parent.name for path in (ROOT / "edgemae").glob("*/__init__.py")}
    assert {room for room in rooms if f"| `{room}/` |" not in text} == set()


WALK = re.compile(r"^\| `([\w/]+\.py):([\w.]+)` \| (.+?) \|$", flags=re.MULTILINE)


def walks() -> list[list[tuple[str, str, str]]]:
    """Return the rows (file, function, text) of each walk of the page on architecture."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    parts = text.split("## Four walks")[1].split("\n## ")[0].split("\n### ")[1:]
    return [WALK.findall(part) for part in parts]


def test_walks_name_functions_that_exist() -> None:
    found = walks()
    assert len(found) == 4
    for file, name, _ in itertools.chain(*found):
        body: Any = ast.parse((ROOT / "edgemae" / file).read_text("utf-8")).body
        for part in name.split("."):
            (node,) = [one for one in body if getattr(one, "name", "") == part]
            body = node.body


def test_walks_enter_a_file_twice_only_with_a_reason() -> None:
    for rows in walks():
        entered: list[str] = []
        for file, _, text in rows:
            if entered[-1:] != [file]:
                assert (file in entered) == text.startswith("again: "), file
                entered.append(file)


def test_pages_name_the_schemas_of_this_version() -> None:
    known = {manifest.SCHEMA, records.SCHEMA, *SCHEMAS}
    for page in PAGES:
        assert set(re.findall(r"edgemae\.\w+/\d+", page.read_text("utf-8"))) <= known, page.name


def test_the_format_page_names_the_files_beside_a_bundle() -> None:
    text = (ROOT / "docs" / "bundle-format.md").read_text("utf-8")
    assert {schema for schema in SCHEMAS if f"`{schema}`" not in text} == set()


# ---------------------------------------------------------------- tables


def test_every_table_has_its_results() -> None:
    names = re.findall(r"<!-- (?:table|summary): (\S+) -->", README.read_text("utf-8") + BENCHMARKS.read_text("utf-8"))
    assert {name for name in names if not (RESULTS / f"{name}.json").is_file()} == set()
    for name in names:
        raw = msgspec.json.decode((RESULTS / f"{name}.json").read_bytes())
        assert raw["command"].startswith("python tools/bench_")
        assert raw["machine"]


def test_every_result_is_shown_or_linked() -> None:
    shown = "".join(page.read_text("utf-8") for page in PAGES)
    for path in RESULTS.glob("*.json"):
        assert f"table: {path.stem} -->" in shown or f"/{path.name})" in shown, path.name


def test_tables_are_the_measured_ones(bench_tool: Callable[[str], ModuleType]) -> None:
    tool = bench_tool("readme_tables")
    assert tool.main(["--check"]) == 0


def test_the_compiled_table_is_of_a_small_student() -> None:
    raw = msgspec.json.decode((RESULTS / "clothing10.json").read_bytes())
    report = msgspec.convert({k: v for k, v in raw.items() if k not in ("command", "seconds")}, Report)
    assert [row.stage for row in report.stages] == ["teacher", "student", "pruned", "int8"]
    student, teacher = report.stages[1], report.stages[0]
    assert student.macs * 4 <= teacher.macs


def named_in(page: Path, table: str) -> set[str]:
    """Return the names in the first column of a table of a page."""
    rows = page.read_text("utf-8").split(f"| {table} |")[1].split("\n\n")[0].splitlines()[2:]
    return set(re.findall(r"`([\w-]+)`", "".join(row.split("|")[1] for row in rows)))


def test_the_readme_lists_every_verb() -> None:
    assert named_in(README, "verb") == set(COMMANDS.commands)


def test_the_page_on_distillation_lists_every_recipe() -> None:
    assert named_in(ROOT / "docs" / "distillation.md", "recipe") == set(RECIPES)


def test_the_example_plan_is_a_plan() -> None:
    assert load_plan(ROOT / "examples/plan.toml").name == "clothing10"


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("bench_*.py")), ids=lambda path: path.stem)
def test_benchmarks_take_quick_and_json(path: Path) -> None:
    text = path.read_text()
    assert '"--quick"' in text
    assert '"--json"' in text


# ---------------------------------------------------------------- commands: what they are called

OTHERS = {"--check", "--no-compile", "--version", "--system-site-packages", "--quick"}  # of other programs


def flags_of(command: Any) -> set[str]:
    """Return the flags of a verb, or of all verbs of a group."""
    own = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    return own.union(*map(flags_of, getattr(command, "commands", {}).values()))


@EVERY_PAGE
def test_flags_in_the_text_exist(page: Path) -> None:
    known = flags_of(COMMANDS) | OTHERS
    for code in inline_code(page):
        words = code.split()
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, code
        if words[0] == "edgemae" and len(words) > 1 and words[1] != "...":
            assert words[1] in COMMANDS.commands, code


@EVERY_PAGE
def test_fields_of_the_plan_in_the_text_exist(page: Path) -> None:
    plan = load_plan()
    tables = "|".join(name for name in plan.__struct_fields__ if isinstance(getattr(plan, name), Section))
    for code in inline_code(page):
        settings = re.findall(rf"(?<![\w.])((?:{tables})\.[\w.]+=\S+)", code)
        settings = [setting for setting in settings if "..." not in setting]
        if settings:
            check_plan(load_plan(None, tuple(settings)))
        for name in re.findall(rf"^((?:{tables})(?:\.\w+)+)$", code):
            if name.endswith(".json"):
                continue
            value: Any = plan
            for part in name.split("."):
                assert hasattr(value, part), code
                value = getattr(value, part)


def parse(arguments: list[str]) -> None:
    """Parse arguments as the command line does, and run nothing. Raises UsageError."""
    command, context = COMMANDS, typer.Context(COMMANDS, info_name="edgemae")
    while hasattr(command, "commands"):
        name, command, arguments = command.resolve_command(context, arguments)
        context = typer.Context(command, parent=context, info_name=name)
    command.parse_args(context, arguments)


@EVERY_PAGE
def test_commands_parse(page: Path) -> None:
    """Also those of blocks that are not run."""
    for block in blocks(page):
        for words in block.commands if block.language == "bash" else ():
            arguments = edgemae_arguments(words, set(COMMANDS.commands))
            if arguments:
                parse(arguments[: arguments.index(">")] if ">" in arguments else arguments)
            check_other(words)


def check_other(words: list[str]) -> None:
    """Check what can be checked of a command that is not edgemae's: targets of make, extras of pip, files of ours."""
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), words
    if words[0] == "pip":
        extras = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]["optional-dependencies"]
        asked = re.findall(r"\[([\w,]+)\]", " ".join(words))
        assert set(",".join(asked).split(",")) - {""} <= set(extras), words
    for word in words:
        if word.startswith(("tools/", "examples/")):
            assert (ROOT / word).exists(), word


# ---------------------------------------------------------------- commands and snippets: what they do

# What a page says -> what runs here: this machine, a short clip in place of a camera, seconds in place of minutes.
REPLACED = {
    "laptop-x86-vnni": "box.toml",
    "--unlabelled photos/more ": "",  # as the shared compile, whose stages are found done
    "--target jetson-orin-nano ": "",
    "--soak 10m ": "",  # the shortest soak takes 10 s
    "age_p99<": "age_p50<",
    "drop<1%": "drop<50%",
    "model.stream(0,": "model.stream('clip.mp4',",
    '"rtsp://door/1"': '"clip.mp4"',
    '"rtsp://yard/1"': '"clip.mp4"',
    '"rtsp://me:secret@door.lan/main"': '"clip.mp4"',
}
TRAINS = ("compile", "pretrain", "finetune", "distill", "prune", "quantize")
FINE = {"profile": {0, 4, 5}, "doctor": {0, 5}}  # a busy machine is not a wrong page


@pytest.fixture
def sandbox(job: Job, compiled: Ran, weave: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder in which every file that a page names exists, tiny, and go there."""
    for name, source in {"train": job.train, "val": job.val, "more": job.flat}.items():
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).symlink_to(source)
    teacher, student = stage(job.output, "pretrain") / "teacher.safetensors", stage(job.output, "student")
    shutil.copy(teacher, tmp_path / "mae.safetensors")
    shutil.copy(student / "student.safetensors", tmp_path)
    shutil.copytree(job.output, tmp_path / "runs" / "photos")
    (tmp_path / "runs/demo").mkdir()
    for name in ("photos.edgemae", "runs/photos/model.edgemae", "runs/demo/digits.edgemae"):
        shutil.copy(job.bundle, tmp_path / name)
    shutil.copytree(job.val / "square", tmp_path / "runs/demo/images/test/7")
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "plan.toml").write_text(PLAN.replace('name = "shapes"\n', ""))
    write_target(tmp_path / "box.toml", ("onnxruntime", "openvino"))
    images = sorted(job.val.rglob("*.png"))
    cv2.imwrite(str(tmp_path / "photo.jpg"), cv2.imread(str(images[0])))
    write_clip(tmp_path / "clip.mp4", images)
    for name in ("profiles", "things/mug", "things/cup", "new"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_clip(path: Path, images: list[Path]) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (36, 28))
    for image in images:
        writer.write(cv2.imread(str(image)))
    writer.release()


def with_cloth(sandbox: Path, weave: Path) -> dict[str, Any]:
    """Give the page on retrieval a bundle with tokens, its images, and the frames that its snippet names."""
    shutil.copy(weave / "weave.edgemae", sandbox / "photos.edgemae")
    normal = sorted((weave / "normal").iterdir())
    (sandbox / "normal").symlink_to(weave / "normal")
    for name, source in {"things/mug/0.png": 0, "things/cup/0.png": 1, "new/0.png": 2, "photo.jpg": 3}.items():
        cv2.imwrite(str(sandbox / name), cv2.imread(str(normal[source])))
    frames = [cv2.imread(str(path)) for path in normal]
    return {"frame_bgr": frames[0], "other_bgr": frames[1], "normal_frames": frames}


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(not b.mark for b in blocks(p))], ids=lambda path: path.stem)
def test_commands_and_snippets_run(page: Path, sandbox: Path, weave: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = with_cloth(sandbox, weave) if page.name == "retrieval.md" else {}
    for block in blocks(page):
        if not block.mark:
            text = block.text
            for old, new in REPLACED.items():
                text = text.replace(old, new)
            if block.language == "python":
                exec(compile(text, f"{page.name}: {text[:60]}", "exec"), dict(names))  # noqa: S102 - our own pages
            else:
                run_shell(Block(page, block.language, text, ""))


def run_shell(block: Block) -> None:
    for words in block.commands:
        arguments = edgemae_arguments(words, set(COMMANDS.commands))
        if words[0] == "python":
            run_tool(words[1:])
            continue
        assert arguments, f"{block.page.name}: mark the block of `{' '.join(words)}`, or have it run here"
        arguments, target = (arguments[:-2], Path(arguments[-1])) if ">" in arguments else (arguments, None)
        if arguments[0] in TRAINS and "--plan" not in arguments:
            arguments += ["--plan", "examples/plan.toml"]
        if arguments[0] == "profile" and "--soak" not in arguments:
            arguments += ["--runs", "44"]
        ran = edgemae(*arguments)
        limits = {3, 4} if any(word.startswith("--max-") for word in arguments) else set()
        assert ran.code in FINE.get(arguments[0], {0}) | limits, f"{' '.join(arguments)}\n{ran.err}"
        if target:
            target.write_text(ran.out)


def run_tool(words: list[str]) -> None:
    """Run a script of tools/ in this process, with patterns resolved as a shell does."""
    found = [str(path) for word in words[1:] for path in (sorted(Path().glob(word)) if "*" in word else [word])]
    err, quiet = io.StringIO(), contextlib.redirect_stdout(io.StringIO())
    with pytest.MonkeyPatch.context() as patch, quiet, contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [words[0], *found])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    assert ended.value.code in (0, None) or "INVALID" in err.getvalue(), err.getvalue()  # a busy machine is refused


def test_a_wrong_page_is_found(tmp_path: Path) -> None:
    """The rules above can fail."""
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: slow -->\n```bash\nedgemae profile a.edgemae --no-such\n```\nSee [x](gone.md).\n")
    (block,) = blocks(page)
    assert block.mark == "not run"
    with pytest.raises(UsageError, match="no-such"):
        parse(block.commands[0][1:])
    with pytest.raises(AssertionError, match="mark the block"):
        run_shell(Block(page, "bash", "docker run x\n", ""))
    assert links(page) == [(tmp_path / "gone.md", "")]
