"""The conformance runner and the independence measure, on small made-up trees."""

import json
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "conformance"


@pytest.fixture(scope="module")
def tools():
    """The tools are scripts beside each other, not a package."""
    sys.path.insert(0, str(TOOLS))
    try:
        import checkout_plugin
        import independence
        import record
        import run
        import source_text
    finally:
        sys.path.remove(str(TOOLS))
    modules = (checkout_plugin, independence, record, run, source_text)
    return type("Tools", (), {module.__name__: module for module in modules})


BODY = """
def f({arguments}):
    total = first.one(2) + second.two[3]
    return max(total, third) - 4
"""

# name: (ours, upstream, grams that coincide)
TREES = {
    "same body, other signature": (BODY.format(arguments="a"), BODY.format(arguments="b=1"), 17),
    "one name differs in the middle": (
        BODY.format(arguments="a"),
        BODY.format(arguments="a").replace("two[3]", "two[5]"),
        9,
    ),
    "another layout is the same text": (
        "x = call(alpha, beta, gamma, 'one')\n",
        'x = call(\n    alpha,  # why\n    beta,\n    gamma,\n    "one",\n)\n',
        5,
    ),
    "imports are left out": (
        "from a.b.c import d, e, f, g, h\n",
        "from a.b.c import d, e, f, g\n",
        0,
    ),
    "headers are left out": (
        "@wrap(one, two, three)\ndef f(a, b=2, *, c: int = 3) -> int:\n    return a\n",
        "@wrap(one, two, three)\ndef f(a, b=2, *, c: int = 3) -> int:\n    return b\n",
        0,
    ),
    "config defaults are left out": (
        "_C.A.B = CN(one(2), three(4), 5)\n",
        "_C.A.B = CN(one(2), three(4), 5)\n",
        0,
    ),
    "tables of names are left out": (
        "x = ['a', 'b', c.d, {'e': 5}]\n",
        "x = ['a', 'b', c.d, {'e': 5}]\n",
        0,
    ),
    "docstrings are not bodies": (
        'def f():\n    """One two three."""\n',
        'def f():\n    """One two three."""\n',
        0,
    ),
    "all of upstream counts, its headers too": (
        "x = call(a, b=c.d, e=f.g)\n",
        "class y(call(a, b=c.d, e=f.g)): pass\n",
        9,
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_bodies(tools, tmp_path, name):
    ours, upstream, shared = TREES[name]
    for folder, text in (("ours", ours), ("upstream/detectron2/deep", upstream)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "code.py").write_text(text)
    found = tools.independence.measure_trees(tmp_path / "ours", tmp_path / "upstream")["bodies"]
    assert found.shared + sum(found.apart_shared.values()) == shared


# name: (text, kind of its windows)
WINDOWS = {
    "constructor": ("self.alpha = alpha\nself.beta = beta\nself._gamma = gamma\n", "PLUMBING"),
    "arguments passed through": (
        "super().__init__(alpha, beta)\nself.c = c\nself.d = d",
        "PLUMBING",
    ),
    "config keys": ("alpha = cfg.A.B.ALPHA\nbeta = cfg.A.B.BETA\n", "CONFIG"),
    "brackets": ("x = ((((((x))))))", "MARK"),
    "another attribute": ("self.alpha = beta\nself.gamma = delta\n", "OWN"),
    "own expression": ("alpha = cfg.A.B.ALPHA + cfg.A.B.BETA\n", "OWN"),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_what_the_interface_dictates(tools, name):
    text, kind = WINDOWS[name]
    (pieces,) = tools.source_text.body_segments(text)
    window = pieces[: tools.independence.GRAM]
    assert tools.independence.kind_of(window) is tools.source_text.Kind[kind]


def test_runs_and_shares(tools):
    text = BODY.format(arguments="")
    known = set(tools.independence.grams_of(tools.source_text.whole_file(text)))
    segments = [("a.py", part) for part in tools.source_text.body_segments(text)]
    measure = tools.independence.compare(segments, known)
    (run,) = measure.runs
    assert (run.file, run.first_line, run.last_line, run.length) == ("a.py", 3, 4, 24)
    assert run.text.startswith("total = first . one")
    assert measure.own_share == measure.share == 1.0
    nothing = tools.independence.compare(segments, set())
    assert (nothing.runs, nothing.share) == ([], 0.0)


def test_prose_ignores_case_marks_and_line_breaks(tools):
    ours = '"""The quick brown fox jumps over the lazy dog."""\n# one\n\n# two\n'
    blocks = tools.source_text.prose_segments(ours)
    assert [[piece.text for piece in block] for block in blocks[1:]] == [["one"], ["two"]]
    theirs = "# the QUICK, brown fox\n# jumps (over) the lazy cat\n"
    known = set(tools.independence.grams_of(tools.source_text.prose_segments(theirs)[0]))
    measure = tools.independence.compare([("a.py", block) for block in blocks], known)
    assert (measure.grams, measure.shared) == (2, 1)


def test_a_folder_without_python_is_an_error(tools, tmp_path):
    with pytest.raises(SystemExit, match="no Python files"):
        tools.independence.measure_trees(tmp_path, tmp_path)


def test_core_list(tools):
    tests = tools.run.read_core_tests()
    assert len({test.node_id for test in tests}) == len(tests) == 121
    assert sum(test.seeded for test in tests) == 3


def test_score(tools):
    ids = ["a.py::T::one", "a.py::T::two", "b.py::T::three", "c.py::T::four"]
    tests = [tools.run.CoreTest(node_id) for node_id in ids]
    outcomes = {
        "a.py::T::one": {"outcome": "passed", "reason": ""},
        "a.py::T::two": {"outcome": "skipped", "reason": "skipped"},
        "b.py": {"outcome": "failed", "reason": "ImportError: x"},
    }
    score = tools.run.score(tests, outcomes)
    assert (score.passed, score.total) == (1, 4)
    assert [reason.split(":")[0] for _, reason in score.failing] == [
        "skipped",
        "ImportError",
        "did not run",
    ]


def test_only_imports_at_the_top_are_seen(tools):
    source = (
        "import a.b\nfrom c import d as e, f\nfrom .g import h\n"
        "try:\n    from i import j\nexcept ImportError:\n    pass\n"
        "def k():\n    from l import m\n"
    )
    found = list(tools.checkout_plugin.top_level_imports(source))
    assert found == [("a.b", None), ("c", "d"), ("c", "f"), ("i", "j")]


def test_placeholders_stand_for_what_is_missing_only(tools, monkeypatch):
    for name in ("json.absent", "json.absent.deeper", "nowhere_at_all"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    wanted = [
        ("json", "loads"),
        ("json", "decoder"),
        ("json.absent.deeper", "thing"),
        ("nowhere_at_all", "Thing"),
    ]
    stubs = tools.checkout_plugin.supply(wanted)
    assert stubs == [
        "json.absent",
        "json.absent.deeper",
        "json.absent.deeper.thing",
        "nowhere_at_all",
        "nowhere_at_all.Thing",
    ]
    monkeypatch.delattr(json, "absent")
    thing = sys.modules.pop("nowhere_at_all").Thing
    for use in (lambda: thing(), lambda: thing.method, lambda: list(thing)):
        with pytest.raises(NotImplementedError, match=r"nowhere_at_all\.Thing"):
            use()
    for name in ("json.absent", "json.absent.deeper"):
        sys.modules.pop(name)


CHECKOUT = {
    "tests/__init__.py": "",
    "tests/test_small.py": """
import unittest
from detectron2 import model_zoo
from detectron2.structures import Boxes
from detectron2.nowhere import Absent
from detectron2.utils.testing import helper


class TestSmall(unittest.TestCase):
    def test_passes(self):
        self.assertEqual(helper(Boxes([[0, 0, 1, 1]])), 1)
        cfg = model_zoo.get_config("a/b.yaml")
        self.assertEqual(cfg.SOLVER.MAX_ITER, 7)

    def test_fails(self):
        self.assertEqual(1, 2)

    def test_uses_what_is_absent(self):
        Absent()

    def test_not_listed(self):
        raise SystemError
""",
    # Would shadow the installed package if it could be imported.
    "detectron2/__init__.py": "raise RuntimeError('the checkout was imported')",
    "detectron2/utils/testing.py": "def helper(boxes):\n    return len(boxes)\n",
    "configs/a/b.yaml": "SOLVER:\n  MAX_ITER: 7\n",
}


def test_a_small_checkout_end_to_end(tools, tmp_path):
    for name, text in CHECKOUT.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_text(text)
    data = tmp_path / "data"
    (data / "annotations").mkdir(parents=True)
    (data / "images").mkdir()
    categories = [{"id": i} for i in range(80)]
    (data / "annotations/instances_val.json").write_text(json.dumps({"categories": categories}))
    names = ("test_passes", "test_fails", "test_uses_what_is_absent", "test_gone")
    tests = [tools.run.CoreTest(f"tests/test_small.py::TestSmall::{name}") for name in names]
    result = tools.run.run_tests(sys.executable, tmp_path / "up", data, tests)
    score = tools.run.score(tests, result["outcomes"])
    assert score.passed == 1
    assert [reason.split(" at ")[0].split(":")[0] for _, reason in score.failing] == [
        "AssertionError",
        "checkout_plugin.UnavailableError",
        "did not run",
    ]
    assert len(result["outcomes"]) == 3
    assert "detectron2.nowhere.Absent" in result["stubs"]


def test_the_stand_in_needs_cocos_classes(tools, tmp_path):
    with pytest.raises(SystemExit, match="not found"):
        tools.run.build_stand_in(tmp_path / "root", tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_val.json").write_text('{"categories": []}')
    with pytest.raises(SystemExit, match="0 categories"):
        tools.run.build_stand_in(tmp_path / "root", tmp_path)


def test_page(tools, tmp_path, monkeypatch):
    monkeypatch.setattr(tools.record, "DOCS", tmp_path)
    core = tools.run.Score(117, 118, (("a.py::T::one", "ImportError: x"),))
    result = {"provider": "lite", "version": "0.6+lite", "stubs": ["a.b"]}
    tools.record.write_tests(tmp_path, sys.executable, result, core, tools.run.Score(3, 3, ()))
    measure = tools.independence.Measure(grams=90, shared=9, apart={"x": 10}, apart_shared={"x": 1})
    figures = {name: measure.summary() for name in ("bodies", "prose", "baseline: mal")}
    tools.record.write_independence(tmp_path, figures)
    text = (tmp_path / "conformance.md").read_text()
    assert "passed 117 of 118 | passed 3 of 3 | `unknown`" in text
    assert "`a.py::T::one`: ImportError: x" in text
    assert text.count("| 100 | 10.00% | 10.00% | 0 | 0 |") == 3
    # Either tool keeps what the other has recorded.
    assert set(tools.record.load()) == {"tests", "independence"}
